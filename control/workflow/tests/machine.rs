//! What runs on a machine: the Python of `deploy/machine`, with this host's own python3 and hardware.

use std::path::PathBuf;
use std::process::{Command, Output};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/machine")
}

fn run(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|error| panic!("{command:?} (it needs python3): {error}"))
}

#[test]
fn the_python_tests_pass() {
    let output = run(Command::new("python3").arg(folder().join("test_machine.py")));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn this_host_s_inventory_is_understood() {
    let output = run(&mut Command::new(
        folder().join("scripts/50-maas-01-commissioning"),
    ));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let (inventory, _) =
        workflow::resources::parse(&output.stdout).expect("our own script's output");
    let cores = std::thread::available_parallelism()
        .expect("a number of cores")
        .get();
    assert!(inventory.cpu_count as usize >= cores, "{inventory:?}");
    assert!(inventory.memory_mib > 64, "{inventory:?}");
    assert!(
        inventory.architecture.ends_with("/generic"),
        "{inventory:?}"
    );
    assert_eq!(inventory.hardware_info.len(), 9);
    assert!(!inventory.numa_nodes.is_empty());
    let threads: usize = inventory
        .numa_nodes
        .iter()
        .map(|node| node.cores.len())
        .sum();
    assert_eq!(threads, inventory.cpu_count as usize);
}
