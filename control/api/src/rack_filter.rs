//! Which racks a list is asked for, by the names of MAAS's filters of nodes.

use model::Mac;
use store::network::Subnet;
use store::rack::{Interface, Rack};

use crate::body::Form;
use crate::constant::DOMAIN;
use crate::error::ApiError;
use crate::machine_filter::{constants, places};
use crate::network_view::Networks;

/// What `rackcontrollers/` writes for every rack.
pub const ARCHITECTURE: &str = "amd64/generic";

/// The filters of a query. An empty list asks for nothing.
#[derive(Default)]
struct Part {
    ids: Vec<String>,
    hostnames: Vec<String>,
    macs: Vec<Mac>,
    domains: Vec<String>,
    archs: Vec<String>,
    fabrics: Vec<String>,
    vlans: Vec<i32>,
    subnets: Vec<Vec<i32>>,
}

pub struct RackFilter {
    /// No rack can be what is asked for.
    impossible: bool,
    is: Part,
    not: Part,
}

impl Part {
    fn read(query: &Form, networks: &Networks, not: &str) -> Result<Self, ApiError> {
        let texts = |name: &str| -> Vec<String> {
            let name = format!("{not}{name}");
            let values = query.all(&name).map(|value| value.trim().to_owned());
            values.filter(|value| !value.is_empty()).collect()
        };
        let wrong = |_| ApiError::field("mac_address", "Enter a valid MAC address.");
        let macs: Result<Vec<Mac>, _> =
            texts("mac_address").iter().map(|mac| mac.parse()).collect();
        let places = places(query, networks, not)?;
        Ok(Self {
            ids: [texts("id"), texts("system_id")].concat(),
            hostnames: texts("hostname"),
            macs: macs.map_err(wrong)?,
            domains: texts("domain"),
            archs: texts("arch"),
            fabrics: texts("fabrics"),
            vlans: places.vlans,
            subnets: places.subnets,
        })
    }

    /// For each thing that is asked: whether it holds.
    fn answers(&self, rack: &Rack, interfaces: &[Interface], networks: &Networks) -> Vec<bool> {
        let one_of = |values: &[String], mine: &[&str]| {
            (!values.is_empty()).then(|| values.iter().any(|value| mine.contains(&value.as_str())))
        };
        let subnets: Vec<&Subnet> = interfaces
            .iter()
            .flat_map(|interface| &interface.addresses)
            .filter_map(|address| networks.subnet_of(address.ip()))
            .collect();
        let on = |rule: &dyn Fn(&Subnet) -> bool| subnets.iter().any(|subnet| rule(subnet));
        let fabric_of = |subnet: &Subnet| networks.vlan(subnet.vlan_id).map(|vlan| &vlan.fabric);
        let has = |mac: &Mac| {
            let mut macs = interfaces.iter().filter_map(|interface| interface.mac);
            macs.any(|own| own.bytes() == mac.octets())
        };
        let mut answers: Vec<bool> = [
            one_of(&self.ids, &[&rack.system_id]),
            one_of(&self.hostnames, &[&rack.hostname]),
            one_of(&self.domains, &[DOMAIN]),
            one_of(&self.archs, &[ARCHITECTURE, "amd64"]),
            (!self.macs.is_empty()).then(|| self.macs.iter().any(has)),
            (!self.vlans.is_empty()).then(|| on(&|subnet| self.vlans.contains(&subnet.vlan_id))),
            (!self.fabrics.is_empty()).then(|| {
                on(&|subnet| fabric_of(subnet).is_some_and(|name| self.fabrics.contains(name)))
            }),
        ]
        .into_iter()
        .flatten()
        .collect();
        let each = self.subnets.iter();
        answers.extend(each.map(|ids| on(&|subnet| ids.contains(&subnet.id))));
        answers
    }
}

impl RackFilter {
    pub fn read(query: &Form, networks: &Networks) -> Result<Self, ApiError> {
        Ok(Self {
            impossible: !constants(query),
            is: Part::read(query, networks, "")?,
            not: Part::read(query, networks, "not_")?,
        })
    }

    pub fn holds(&self, rack: &Rack, interfaces: &[Interface], networks: &Networks) -> bool {
        !self.impossible
            && self
                .is
                .answers(rack, interfaces, networks)
                .iter()
                .all(|holds| *holds)
            && !self.not.answers(rack, interfaces, networks).contains(&true)
    }
}
