//! Compares the listeners with each other, with the admin API and with the lanes.

use pointsman_domain::Topology;
use pointsman_fleet::LaneSpec;
use pointsman_settings::{Code, Section};

use super::address::overlap;
use super::{Address, Listener};
use crate::admin::Admin;

/// Reports addresses that are used twice, and model names that no lane serves. The ports of engines
/// are checked with the lanes.
pub(crate) fn check(
    root: &Section<'_>,
    listeners: &[Listener],
    admin: &Admin,
    lanes: Option<&[LaneSpec]>,
) {
    let further = root.sections("listeners").into_iter().map(|section| (section, "address"));
    let sections = std::iter::once((root.section("server"), "listen")).chain(further);
    let topology = lanes.map(|lanes| Topology::new(1, lanes.iter().map(LaneSpec::info).collect()));
    for (index, (listener, (section, key))) in listeners.iter().zip(sections).enumerate() {
        check_address(&section, key, &listener.address, &listeners[..index], admin);
        if let Some(topology) = &topology {
            check_models(&section, listener, topology);
        }
    }
}

fn check_address(
    section: &Section<'_>,
    key: &str,
    address: &Address,
    earlier: &[Listener],
    admin: &Admin,
) {
    if let Some(other) = earlier.iter().find(|other| other.address.overlaps(address)) {
        let message = match other.address == *address {
            true => format!("{address} is used by another listener"),
            false => format!("{address} overlaps with {}, another listener", other.address),
        };
        section.error_at(key, Code::Duplicate.with(message));
    }
    let admin_port = admin.port.as_ref().map(|(address, _)| *address);
    let is_admins = match address {
        Address::Tcp(address) => admin_port.is_some_and(|admin| overlap(*address, admin)),
        Address::Unix { path, .. } => admin.socket.as_ref() == Some(path),
    };
    if is_admins {
        let message = format!("{address} is used by the admin API; set another address");
        section.error_at(key, Code::Conflict.with(message));
    }
}

fn check_models(section: &Section<'_>, listener: &Listener, topology: &Topology) {
    let is_served = |name: &str| !topology.candidates(name).is_empty();
    for (name, model) in &listener.models {
        if !is_served(model) {
            let message = format!("no lane serves model `{model}`, which `{name}` stands for");
            section.error_at("models", Code::UnknownName.with(message));
        }
    }
    let own = |name: &str| listener.models.iter().any(|(own, _)| own == name);
    if let Some(model) = &listener.default_model
        && !own(model)
        && !is_served(model)
    {
        let message = format!("no lane serves model `{model}`");
        section.error_at("default-model", Code::UnknownName.with(message));
    }
}
