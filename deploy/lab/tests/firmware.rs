//! The boot chains of both firmwares, loaders and kernel of the lab's image, with dnsmasq and a few lines of HTTP
//! in a rack's place: when this passes and a commissioning does not, the lab is not to blame.
//!
//! Needs root, the lab's packages and a built image; says so and passes where they are missing.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use lab::kvm::Accelerator;
use lab::{BootNetwork, Firmware, Lab, LabConfig, loaders};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// 15 s each on a quiet machine.
const LIMIT: Duration = Duration::from_secs(120);
/// The initrd's shell, which break=top asks for: loader, kernel and initrd have worked.
const GOAL: &str = "Spawning shell within the initramfs";

#[test]
fn bios_boots_through_pxelinux() {
    boots(
        Firmware::Bios,
        "lpxelinux.0",
        "pxelinux.cfg/default",
        |base| {
            format!(
                "DEFAULT execute\nLABEL execute\n KERNEL {base}/vmlinuz\n INITRD {base}/initrd\n \
             APPEND console=ttyS0 break=top\n"
            )
        },
    );
}

#[test]
fn uefi_boots_through_shim_and_grub() {
    boots(Firmware::Uefi, "bootx64.efi", "grub/grub.cfg", |base| {
        let base = format!("(http,{})", base.trim_start_matches("http://"));
        format!("linux {base}/vmlinuz console=ttyS0 break=top\ninitrd {base}/initrd\nboot\n")
    });
}

fn boots(firmware: Firmware, boot_file: &str, config_path: &str, config: impl Fn(&str) -> String) {
    let image = match prerequisites() {
        Ok(image) => image,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let lab = Lab::start(&LabConfig {
        name: format!(
            "f{}-{}",
            std::process::id(),
            firmware.to_string().to_lowercase()
        ),
        racks: 1,
        machines: vec![firmware],
        network: BootNetwork::default(),
        base: folder.path().join("labs"),
        logs: folder.path().join("logs"),
        accelerator: Accelerator::Tcg,
    })
    .expect("a lab");
    let network = BootNetwork::default();
    let rack = network.rack(1).addr();

    let files = folder.path().join("tftp");
    loaders::gather(&files).expect("loaders");
    let path = files.join(config_path);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    std::fs::write(&path, config(&format!("http://{rack}:5248"))).expect("written");
    serve(lab.names().rack(1), image);

    // Ends with the lab: it is on one of its hosts.
    let log = File::create(folder.path().join("dnsmasq.log")).expect("a log");
    let mut dnsmasq = std::process::Command::new("ip")
        .args([
            "netns",
            "exec",
            &lab.names().rack(1),
            "dnsmasq",
            "-C",
            "/dev/null",
        ])
        .args([
            "--keep-in-foreground",
            "--port=0",
            "--user=root",
            "--interface=boot",
            "--no-ping",
        ])
        .args([
            "--bind-interfaces",
            "--enable-tftp",
            "--dhcp-authoritative",
            "--log-facility=-",
        ])
        .args(["--leasefile-ro", "--pid-file="])
        .arg(format!("--tftp-root={}", files.display()))
        .arg(format!(
            "--dhcp-range={},{},{}",
            network.first,
            network.last,
            network.subnet.netmask()
        ))
        .arg(format!("--dhcp-boot={boot_file},rack,{rack}"))
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("dnsmasq starts");

    let machine = &lab.machines()[0];
    let start = Instant::now();
    machine.press_power().expect("power");
    let mut said = String::new();
    while start.elapsed() < LIMIT && !said.contains(GOAL) {
        std::thread::sleep(Duration::from_millis(200));
        let octets = std::fs::read(&machine.serial_log).unwrap_or_default();
        said = String::from_utf8_lossy(&octets).into_owned();
    }
    eprintln!(
        "{firmware}: in the initrd after {:.1} s",
        start.elapsed().as_secs_f64()
    );
    let rack_log = std::fs::read_to_string(folder.path().join("dnsmasq.log")).unwrap_or_default();
    drop(lab);
    dnsmasq.wait().expect("dnsmasq ended with the lab");
    let tail: String = said
        .chars()
        .rev()
        .take(2000)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect();
    assert!(
        said.contains(GOAL),
        "{firmware} did not get there; its console:\n{tail}\n{rack_log}"
    );
}

/// The folder of a built image, or why the test can't run.
fn prerequisites() -> Result<PathBuf, String> {
    if let Some(reason) = lab::missing_rights() {
        return Err(reason.to_owned());
    }
    for file in [
        "/usr/bin/qemu-system-x86_64",
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/sbin/dnsmasq",
    ] {
        if !Path::new(file).exists() {
            return Err(format!(
                "{file} is not installed (`cargo xtask packages` installs it)"
            ));
        }
    }
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let cache = std::env::var_os("MUSTER_LAB_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(program.ancestors().nth(3)?.join("lab/cache")));
    let images = cache
        .and_then(|cache| std::fs::read_dir(cache).ok())
        .into_iter()
        .flatten()
        .flatten();
    let image = images
        .map(|entry| entry.path())
        .find(|folder| folder.join("squashfs").exists());
    image.ok_or("there is no built image (`cargo xtask image` builds it)".to_owned())
}

/// GET and HEAD of the image's files on the rack's port, for as long as this process lives.
fn serve(namespace: String, image: PathBuf) {
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let link = File::open(format!("/run/netns/{namespace}")).expect("the rack's namespace");
        move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network)).expect("entered");
        let listener = TcpListener::bind("0.0.0.0:5248").expect("the rack's port");
        ready.send(()).expect("the test waits");
        for stream in listener.incoming().flatten() {
            let image = image.clone();
            // A client that goes away is its own business.
            std::thread::spawn(move || answer(stream, &image).ok());
        }
    });
    is_ready.recv().expect("the server listens");
}

fn answer(mut stream: TcpStream, image: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    loop {
        let Some(request) = lines.next().transpose()? else {
            return Ok(());
        };
        while lines
            .next()
            .transpose()?
            .is_some_and(|header| !header.is_empty())
        {}
        let name = request
            .split(' ')
            .nth(1)
            .unwrap_or_default()
            .trim_start_matches('/')
            .to_owned();
        let mut content = Vec::new();
        File::open(image.join(&name))?.read_to_end(&mut content)?;
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            content.len()
        )?;
        if request.starts_with("GET") {
            stream.write_all(&content)?;
        }
        // lpxelinux reads to the end of the connection, whatever Content-Length says.
        if request.ends_with("HTTP/1.0") {
            return stream.shutdown(std::net::Shutdown::Write);
        }
    }
}
