//! What load tools need of a lab: a cable without a switch between client and rack, and many reservations at once.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{run, run_with_input};
use crate::instance::Lab;

/// The interface of both ends.
pub const LOAD_INTERFACE: &str = "boot";

impl Lab {
    /// Takes the client and rack 1 off the machines' network and connects them by a cable of their own: what is
    /// measured then is the server, not a bridge. One card speaks for all clients, and as their relay. Before the rack starts.
    pub fn connect_directly(&mut self) -> Result<()> {
        self.any_source_devices.push(LOAD_INTERFACE);
        self.trust_relays(&[self.network().client().addr()]);
        let ends = [
            (self.names.client(), self.network().client()),
            (self.names.rack(1), self.network().rack(1)),
        ];
        for (namespace, _) in &ends {
            run(Command::new("ip").args(["-n", namespace, "link", "delete", LOAD_INTERFACE]))
                .with_context(|| format!("unplugging {namespace}"))?;
        }
        run(Command::new("ip")
            .args(["link", "add", LOAD_INTERFACE, "netns", &ends[0].0])
            .args(["type", "veth", "peer", "name", LOAD_INTERFACE])
            .args(["netns", &ends[1].0]))
        .context("laying the cable")?;
        for (namespace, address) in &ends {
            let commands = format!(
                "address add {address} dev {LOAD_INTERFACE}\nlink set {LOAD_INTERFACE} up\n"
            );
            run_with_input(
                Command::new("ip").args(["-n", namespace, "-batch", "-"]),
                &commands,
            )
            .with_context(|| format!("configuring {namespace}"))?;
        }
        Ok(())
    }

    /// Reserves addresses in the machines' subnet with one statement, as an import of a site's list would. Before
    /// DHCP is switched on: the racks are not told of each of them.
    pub fn import_reservations(&self, reservations: &[([u8; 6], Ipv4Addr)]) -> Result<()> {
        let Some((last, rest)) = reservations.split_last() else {
            return Ok(());
        };
        let mut sql = String::from(
            "insert into reserved_ip (subnet_id, mac, ip) select s.id, v.mac::macaddr, v.ip::inet from subnet s, (values ",
        );
        for (mac, address) in rest {
            write!(sql, "('{}','{address}'),", hex::encode(mac))?;
        }
        write!(
            sql,
            "('{}','{}')) as v (mac, ip) where s.cidr = '{}'",
            hex::encode(last.0),
            last.1,
            self.network().subnet
        )?;
        let mut psql = Command::new("psql");
        psql.args([
            "--no-psqlrc",
            "--quiet",
            "--set=ON_ERROR_STOP=1",
            "--username=muster",
        ]);
        psql.args(["--dbname=postgres", "--host"]);
        run_with_input(psql.arg(self.folder.join("region/postgres")), &sql)
            .context("importing the reservations")?;
        Ok(())
    }
}
