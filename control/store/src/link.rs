//! What interfaces are to be given on their subnets once their machine is deployed: MAAS's links.

use mac_address::MacAddress;
use model::SystemId;
use sqlx::PgConnection;

use crate::StoreError;
use crate::inventory::Interface;

#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Link {
    pub id: i32,
    pub interface_id: i32,
    pub subnet_id: Option<i32>,
    pub mode: String,
}

/// Of the interfaces of these machines, by interface and id.
pub async fn of_machines(
    db: &mut PgConnection,
    machines: &[String],
) -> Result<Vec<Link>, StoreError> {
    Ok(sqlx::query_as(
        "select k.id, k.interface_id, k.subnet_id, k.mode
         from interface_link k join interface i on i.id = k.interface_id
         where i.machine = any($1) order by k.interface_id, k.id",
    )
    .bind(machines)
    .fetch_all(db)
    .await?)
}

/// After a commissioning the interface that booted has one link, of mode auto, on its subnet: the one that its address
/// is in, else the first of its VLAN. Not where the operator wanted the links left alone.
pub async fn of_boot_interface(
    db: &mut PgConnection,
    machine: &SystemId,
    found: &[Interface],
) -> Result<(), StoreError> {
    let subnets: Vec<(i32, MacAddress, i32, String)> = sqlx::query_as(
        "select i.id, i.mac, s.id, s.cidr::text from machine m join interface i on i.id = m.boot_interface_id
         join subnet s on s.vlan_id = i.vlan_id
         where m.system_id = $1 and not m.skip_networking
         order by exists (
                 select from lease l where l.mac = i.mac and l.client_kind is not null and l.ends > now()
                     and l.address <<= s.cidr) desc,
             family(s.cidr), s.cidr",
    )
    .bind(machine.as_str())
    .fetch_all(&mut *db)
    .await?;
    let Some((interface_id, mac, first, _)) = subnets.first() else {
        return Ok(());
    };
    let reported = found
        .iter()
        .find(|interface| interface.mac.octets() == mac.bytes());
    let holds = |cidr: &str| {
        let cidr: Option<ipnet::IpNet> = cidr.parse().ok();
        let addresses = reported.map_or(&[][..], |interface| &interface.addresses);
        cidr.is_some_and(|cidr| addresses.iter().any(|address| cidr.contains(address)))
    };
    let subnet = subnets
        .iter()
        .find(|(_, _, _, cidr)| holds(cidr))
        .map_or(first, |(_, _, subnet, _)| subnet);
    sqlx::query(
        "delete from interface_link where interface_id in (select id from interface where machine = $1)
             and (interface_id, subnet_id) is distinct from ($2, $3)",
    )
    .bind(machine.as_str())
    .bind(interface_id)
    .bind(subnet)
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "insert into interface_link (interface_id, subnet_id, mode) values ($1, $2, 'auto')
         on conflict (interface_id, subnet_id) do update set mode = 'auto'",
    )
    .bind(interface_id)
    .bind(subnet)
    .execute(db)
    .await?;
    Ok(())
}
