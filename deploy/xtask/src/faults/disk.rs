//! A rack whose disk is full while it is alone.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::attack::{number, rack_numbers};
use super::bench::{Bench, Case, STEP_LIMIT};
use super::doors::attached;
use super::ordinary::Clients;
use super::ordinary::setup;

pub const CASES: &[(&str, Case)] = &[(
    "a rack alone with a full disk promises nothing, and gives addresses again once there is room",
    full_disk,
)];

/// Beside the spool there is room for the boot loaders.
const DISK: &str = "size=64m,mode=700";
/// Pauses of the spool's tries double meanwhile.
const ROOM_LIMIT: Duration = Duration::from_secs(60);
/// Of the MACs of new clients; two octets follow.
const NEW_MACS: &str = "02:6e:65:77";

fn full_disk(bench: &mut Bench) -> Result<()> {
    let state = bench.lab.rack_state(1);
    let kept = bench.lab.folder().join("rack1-kept");
    bench.lab.kill_rack(1)?;
    mount(&state, &kept)?;
    let binaries = bench.binaries.clone();
    let result = bench
        .lab
        .run_rack(&binaries, 1)
        .and_then(|()| attached(bench))
        .and_then(|()| alone(bench, &state.join("ballast")));
    if bench.lab.has_rack(1) {
        bench.lab.kill_rack(1)?;
    }
    unmount(&state, &kept)?;
    result
}

/// A small disk in the place of the rack's folder, with what the rack needs of that.
fn mount(state: &Path, kept: &Path) -> Result<()> {
    copy(state, kept)?;
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", DISK, "tmpfs"])
        .arg(state))?;
    copy(kept, state)
}

fn unmount(state: &Path, kept: &Path) -> Result<()> {
    copy(state, kept)?;
    run(Command::new("umount").arg(state))?;
    copy(kept, state)
}

/// All but images, which are large and fetched again.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    let entries = std::fs::read_dir(from).with_context(|| format!("listing {}", from.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("listing {}", from.display()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let target = to.join(entry.file_name());
            std::fs::copy(entry.path(), &target)
                .with_context(|| format!("writing {}", target.display()))?;
        }
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status();
    let done = status.with_context(|| format!("starting {}", command.get_program().display()))?;
    ensure!(done.success(), "{command:?}: {done}");
    Ok(())
}

fn alone(bench: &mut Bench, ballast: &Path) -> Result<()> {
    let setup = setup(bench, 0.2)?;
    let first = bench.new_macs;
    let host = bench.lab.names().client();
    let mut clients = Clients::default();
    clients.start(bench, &host, &["new"], &setup)?;
    let mut given = 0;
    until_try(bench, &clients, &mut given, "with its region", true)?;
    bench.lab.kill_region()?;
    bench.until("the rack is alone", STEP_LIMIT, |bench| {
        Ok((number(&rack_numbers(bench)?, "attached")? == 0).then_some(()))
    })?;
    clients.take();
    until_try(bench, &clients, &mut given, "alone", true)?;
    fill(ballast)?;
    until_try(bench, &clients, &mut given, "with a full disk", false)?;
    std::fs::remove_file(ballast).context("making room")?;
    until_try(bench, &clients, &mut given, "with room again", true)?;
    drop(clients);

    bench.lab.run_region(&bench.binaries.clone())?;
    bench.until("the spool is handed over", ROOM_LIMIT, |bench| {
        let numbers = rack_numbers(bench)?;
        let done = number(&numbers, "attached")? == 1 && number(&numbers, "spooled")? == 0;
        Ok(done.then_some(()))
    })?;
    let from = format!("{NEW_MACS}:{:02x}:{:02x}", first >> 8, first & 0xff);
    let sql =
        format!("select count(*) from lease where mac >= '{from}' and mac < '02:6e:65:78:0:0'");
    let rows = bench.lab.query(&sql)?;
    let known: u64 = rows.first().and_then(|rows| rows.parse().ok()).unwrap_or(0);
    ensure!(
        known >= given,
        "{given} clients were given addresses, and the region knows of {known}"
    );
    Ok(())
}

/// Waits for a new client that is given an address, or for one that is not; `given` counts the former.
fn until_try(
    bench: &mut Bench,
    clients: &Clients,
    given: &mut u64,
    when: &str,
    wanted: bool,
) -> Result<()> {
    let what = match wanted {
        true => format!("a new client gets an address, {when}"),
        false => format!("a new client gets none, {when}"),
    };
    bench.until(&what, ROOM_LIMIT, |_| {
        let tries = clients.take();
        *given += tries.iter().filter(|one| one.ms.is_some()).count() as u64;
        let found = tries.iter().any(|one| one.ms.is_some() == wanted);
        Ok(found.then_some(()))
    })
}

/// Until there is no room for another octet.
fn fill(ballast: &Path) -> Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(ballast).context("making the ballast")?;
    for size in [1 << 20, 4096, 1] {
        let piece = vec![0; size];
        loop {
            match file.write(&piece) {
                Ok(0) => bail!("a file that takes nothing"),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error).context("writing the ballast"),
            }
        }
    }
    Ok(())
}
