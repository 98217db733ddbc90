//! One lab: its hosts, the region and racks on them, its machines, from start to end.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command::{in_namespace, on_host, run};
use crate::image::Image;
use crate::kvm::Accelerator;
use crate::machine::{Machine, Place};
use crate::oauth::random_hex;
use crate::plan::{self, BootNetwork, Firmware, MACHINES_MAX, Names, RACKS_MAX};
use crate::process::Process;
use crate::reaper::Reaper;
use crate::region::{API_PORT, Region};
use crate::{loaders, network, usage};

const RPC_PORT: u16 = 5250;
const RACK_HTTP_PORT: u16 = 5251;
const ADMIN: &str = "admin";
/// initdb and migrations on a busy machine.
const REGION_LIMIT: Duration = Duration::from_secs(120);
const RACK_LIMIT: Duration = Duration::from_secs(60);
const SUMMARY: &str = "lab.json";

pub struct LabConfig {
    /// Unique among the labs of this host; 1 to 20 of a-z, 0-9 and -.
    pub name: String,
    pub racks: usize,
    /// One machine each, made but powered off.
    pub machines: Vec<Firmware>,
    pub network: BootNetwork,
    /// Labs have their folders in here. Every user must be able to enter it: PostgreSQL is not run by root.
    pub base: PathBuf,
    /// This lab's logs. They outlive it.
    pub logs: PathBuf,
    pub accelerator: Accelerator,
}

/// A rack of a running lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rack {
    pub hostname: String,
    pub system_id: String,
    pub namespace: String,
    /// Interface name to address with prefix length.
    pub interfaces: BTreeMap<String, String>,
}

/// What `lab up --json` prints, and `lab status` reads again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    pub name: String,
    pub region_url: String,
    pub api_key: String,
    pub region_namespace: String,
    pub racks: Vec<Rack>,
    pub client: Client,
    pub switch_namespace: String,
    pub network: BootNetwork,
    pub logs: PathBuf,
    pub folder: PathBuf,
}

/// The empty host on the machines' VLAN, for load tools.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Client {
    pub namespace: String,
    pub interface: String,
    pub addresses: Vec<String>,
}

impl Summary {
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(SUMMARY);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("understanding {}", path.display()))
    }
}

/// A running lab. Dropping it removes it; [`Lab::keep`] lets it stand.
#[derive(Debug)]
pub struct Lab {
    // First, so that it is dropped first.
    pub(crate) reaper: Reaper,
    pub(crate) names: Names,
    network: BootNetwork,
    pub(crate) rack_count: usize,
    pub(crate) folder: PathBuf,
    logs: PathBuf,
    pub(crate) region_process: Option<Process>,
    region: Region,
    pub(crate) racks: Vec<Rack>,
    machines: Vec<Machine>,
    pub(crate) processes: Vec<Process>,
    /// Model machines made so far.
    pub(crate) models: usize,
    /// Hosts of DHCP tests made so far.
    pub(crate) dhcp_hosts: usize,
    /// What racks are told of DHCP when they start: relays they trust, devices that hide who sends.
    relays: Vec<Ipv4Addr>,
    pub(crate) any_source_devices: Vec<&'static str>,
    /// Open files that daemons may have that start from now on; the host's own limit without.
    pub(crate) files_max: Option<u32>,
}

impl Lab {
    /// Everything: hosts, region, racks, image, network, DHCP. `says` hears what is done, before it is.
    pub fn up(
        config: &LabConfig,
        binaries: &Path,
        image: &Image,
        shards: Option<usize>,
        says: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        says("starting hosts, networks and BMCs");
        let mut lab = Self::start(config)?;
        let done = lab.populate(binaries, image, shards, says);
        if let Err(error) = done {
            lab.save_logs();
            return Err(error);
        }
        Ok(lab)
    }

    fn populate(
        &mut self,
        binaries: &Path,
        image: &Image,
        shards: Option<usize>,
        says: &mut dyn FnMut(&str),
    ) -> Result<()> {
        says("starting the region, with a PostgreSQL of its own");
        self.start_region(binaries)?;
        says("importing the ephemeral image and the boot loaders");
        self.import_images(binaries, image)?;
        says("enrolling the racks");
        self.start_racks(binaries, shards)?;
        says("defining the machines' network and switching DHCP on");
        self.define_network()
    }

    /// Hosts, networks, machines with their BMCs; no region and no racks yet.
    pub fn start(config: &LabConfig) -> Result<Self> {
        if let Some(reason) = crate::missing_rights() {
            bail!(reason);
        }
        let names = Names::new(&config.name)?;
        ensure!(
            (1..=RACKS_MAX).contains(&config.racks),
            "1 to {RACKS_MAX} racks"
        );
        ensure!(
            config.machines.len() <= MACHINES_MAX,
            "at most {MACHINES_MAX} machines"
        );
        ensure!(
            !config.base.to_string_lossy().contains(char::is_whitespace),
            "{} has a space in it, which ipmi_sim can't take",
            config.base.display()
        );
        let folder = config.base.join(&config.name);
        if folder.exists() {
            bail!(
                "a lab named {} stands in {}: `cargo xtask lab down --name {}` removes it",
                config.name,
                folder.display(),
                config.name
            );
        }
        make_folder(&config.base, &folder)?;
        let reaper = Reaper::start(&folder, &network::namespaces(&names, config.racks))?;
        // Of an earlier lab of this name.
        std::fs::remove_dir_all(&config.logs).ok();
        std::fs::create_dir_all(&config.logs)
            .with_context(|| format!("making {}", config.logs.display()))?;

        network::create(&names, config.racks, config.machines.len(), &config.network)?;
        let mut lab = Self {
            region: Region::connect(&names.region())?,
            reaper,
            names,
            network: config.network,
            rack_count: config.racks,
            folder,
            logs: config.logs.clone(),
            region_process: None,
            racks: Vec::new(),
            machines: Vec::new(),
            processes: Vec::new(),
            models: 0,
            dhcp_hosts: 0,
            relays: Vec::new(),
            any_source_devices: Vec::new(),
            files_max: None,
        };
        lab.start_advertising()?;
        lab.create_machines(config)?;
        Ok(lab)
    }

    /// An answered router solicitation: without one iPXE waits 13 s for it after its DHCPACK. In a datacenter
    /// this is a router's work, not a rack's.
    fn start_advertising(&mut self) -> Result<()> {
        let mut command = in_namespace(&self.names.switch(), "dnsmasq");
        command.args([
            "-C",
            "/dev/null",
            "--keep-in-foreground",
            "--port=0",
            "--user=root",
        ]);
        command.args([
            "--interface=br-boot",
            "--bind-interfaces",
            "--enable-ra",
            "--log-facility=-",
        ]);
        command.arg(format!("--dhcp-range={},ra-only,64", plan::BOOT_V6));
        command.arg("--leasefile-ro").arg("--pid-file=");
        let log = self.logs.join("router-advertisements.log");
        let process = Process::start(
            "the router advertisements",
            &log,
            &mut command,
            Stdio::null(),
        )?;
        self.processes.push(process);
        Ok(())
    }

    fn create_machines(&mut self, config: &LabConfig) -> Result<()> {
        let machines = self.folder.join("machines");
        let switch = self.names.switch();
        let place = Place {
            machines: &machines,
            logs: &self.logs,
            switch: &switch,
            lab: &self.names.lab,
        };
        for (number, firmware) in (1..).zip(&config.machines) {
            let machine = Machine::create(number, *firmware, config.accelerator, &place)?;
            self.processes.push(machine.start_bmc()?);
            self.machines.push(machine);
        }
        Ok(())
    }

    /// Starts regiond from `binaries`, makes the administrator and takes its API key.
    pub fn start_region(&mut self, binaries: &Path) -> Result<()> {
        let config = self.region_config();
        let listen = |port: u16| format!("0.0.0.0:{port}");
        let text = format!(
            "state_dir = {:?}\napi_listen = {:?}\nrpc_listen = {:?}\nrack_http_listen = {:?}\nadvertise = [{:?}]\n",
            self.folder.join("region"),
            listen(API_PORT),
            listen(RPC_PORT),
            listen(RACK_HTTP_PORT),
            plan::region_mgmt().addr().to_string(),
        );
        std::fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
        self.run_region(binaries)?;

        let password = self.folder.join("admin-password");
        write_secret(&password, &random_hex(16)?)?;
        let mut create = self.regiond(binaries, "createadmin");
        create.args([
            "--username",
            ADMIN,
            "--email",
            "admin@lab.invalid",
            "--password-file",
        ]);
        run(create.arg(&password)).context("making the administrator")?;
        let mut show = self.regiond(binaries, "apikey");
        let key = run(show.args(["--username", ADMIN])).context("asking for the API key")?;
        self.region.set_key(&key)
    }

    /// Starts the regiond process and waits for its API; also after [`Lab::kill_region`].
    pub fn run_region(&mut self, binaries: &Path) -> Result<()> {
        let mut command = self.daemon(&self.names.region(), "region", &binaries.join("regiond"));
        command.arg("run").arg("--config").arg(self.region_config());
        let log = self.log("regiond");
        let process = self.region_process.insert(Process::start(
            "regiond",
            &log,
            &mut command,
            Stdio::null(),
        )?);
        let region = &self.region;
        process.wait_until("waiting for its API", REGION_LIMIT, || {
            region.get("version/", &[]).map(Some)
        })?;
        Ok(())
    }

    /// SIGKILL, as in a crash. Its PostgreSQL goes on.
    pub fn kill_region(&mut self) -> Result<()> {
        self.region_process
            .take()
            .context("regiond does not run")?
            .kill()
    }

    /// A daemon of the lab, with the limits of a service manager where a test has set them.
    pub(crate) fn daemon(&self, namespace: &str, hostname: &str, program: &Path) -> Command {
        match self.files_max {
            None => on_host(namespace, hostname, program),
            Some(files) => {
                let mut command = on_host(namespace, hostname, "prlimit");
                command
                    .arg(format!("--nofile={files}:{files}"))
                    .arg(program);
                command
            }
        }
    }

    fn region_config(&self) -> PathBuf {
        self.folder.join("regiond.toml")
    }

    fn regiond(&self, binaries: &Path, subcommand: &str) -> Command {
        let mut command = on_host(&self.names.region(), "region", binaries.join("regiond"));
        command
            .arg(subcommand)
            .arg("--config")
            .arg(self.region_config());
        command
    }

    /// Racks that start from now on believe these hosts as relays, though they are on the racks' own link.
    pub fn trust_relays(&mut self, relays: &[Ipv4Addr]) {
        self.relays.extend_from_slice(relays);
    }

    /// Starts and enrols the racks; returns when the region lists each of them.
    pub fn start_racks(&mut self, binaries: &Path, shards: Option<usize>) -> Result<()> {
        for number in 1..=self.rack_count {
            let hostname = format!("rack{number}");
            let namespace = self.names.rack(number);
            let answer = self
                .region
                .post(
                    "rackcontrollers/",
                    "create_token",
                    &[("hostname", &hostname)],
                )
                .context("asking for an enrolment token")?;
            let token = answer
                .get("token")
                .unwrap_or(&answer)
                .as_str()
                .context("the region's answer has no token")?
                .to_owned();
            let token_file = self.folder.join(format!("{hostname}.token"));
            write_secret(&token_file, &token)?;
            let config = self.folder.join(format!("{hostname}.toml"));
            let mut text = format!(
                "state_dir = {:?}\ntoken_file = {token_file:?}\n",
                self.folder.join(&hostname)
            );
            if let Some(shards) = shards {
                text += &format!("shards = {shards}\n");
            }
            let relays: Vec<String> = self.relays.iter().map(ToString::to_string).collect();
            text += &format!(
                "[dhcp]\ntrusted_relays = {relays:?}\nany_source_devices = {:?}\n",
                self.any_source_devices
            );
            std::fs::write(&config, text)
                .with_context(|| format!("writing {}", config.display()))?;

            let mut process = self.spawn_rack(binaries, number)?;
            let region = &self.region;
            let system_id = process.wait_until("waiting for it to enrol", RACK_LIMIT, || {
                let racks = region.get("rackcontrollers/", &[])?;
                Ok(field_of(&racks, "hostname", &hostname, "system_id"))
            })?;
            self.processes.push(process);
            let links = plan::rack_links(number, self.rack_count);
            let mut interfaces =
                BTreeMap::from([("mgmt".to_owned(), plan::rack_mgmt(number).to_string())]);
            if links.boot {
                interfaces.insert("boot".to_owned(), self.network.rack(number).to_string());
            }
            if links.bmc {
                interfaces.insert("bmc".to_owned(), plan::rack_bmc(number).to_string());
            }
            self.racks.push(Rack {
                hostname,
                system_id,
                namespace,
                interfaces,
            });
        }
        Ok(())
    }

    /// Starts rackd of rack `number`, whose configuration is written.
    pub(crate) fn spawn_rack(&self, binaries: &Path, number: usize) -> Result<Process> {
        let hostname = format!("rack{number}");
        let mut command = self.daemon(&self.names.rack(number), &hostname, &binaries.join("rackd"));
        command
            .arg("run")
            .arg("--config")
            .arg(self.folder.join(format!("{hostname}.toml")));
        let log = self.log(&format!("rackd-{number}"));
        Process::start(&rack_process(number), &log, &mut command, Stdio::null())
    }

    /// Tells the region of the machines' VLAN, its subnet and range, and switches DHCP on at rack 1.
    pub fn define_network(&self) -> Result<()> {
        let vlan = self.define_subnet()?;
        self.switch_dhcp_on(&vlan)
    }

    /// The first half of it: VLAN, subnet and range. Returns the VLAN's path in the API.
    pub fn define_subnet(&self) -> Result<String> {
        let region = &self.region;
        let fabric = region.post("fabrics/", "", &[("name", "machines")])?;
        let fabric_id = number(&fabric, "id")?;
        let vlan = match fabric.get("vlans").and_then(|vlans| vlans.get(0)) {
            Some(vlan) => vlan.clone(),
            None => region.post(&format!("fabrics/{fabric_id}/vlans/"), "", &[("vid", "0")])?,
        };
        let (vlan_id, vid) = (number(&vlan, "id")?, number(&vlan, "vid")?);
        let cidr = self.network.subnet.to_string();
        let subnet = region.post(
            "subnets/",
            "",
            &[("cidr", &cidr), ("vlan", &vlan_id), ("name", "machines")],
        )?;
        let subnet_id = number(&subnet, "id")?;
        let (first, last) = (
            self.network.first.to_string(),
            self.network.last.to_string(),
        );
        region.post(
            "ipranges/",
            "",
            &[
                ("type", "dynamic"),
                ("start_ip", &first),
                ("end_ip", &last),
                ("subnet", &subnet_id),
            ],
        )?;
        Ok(format!("fabrics/{fabric_id}/vlans/{vid}/"))
    }

    /// The second half.
    pub fn switch_dhcp_on(&self, vlan: &str) -> Result<()> {
        let rack = self.racks.first().context("there is no rack yet")?;
        let on = [("dhcp_on", "true"), ("primary_rack", &rack.system_id)];
        self.region.put(vlan, &on)?;
        Ok(())
    }

    /// Gives the region the ephemeral image and the boot loaders, with the operator's own command line.
    pub fn import_images(&self, binaries: &Path, image: &Image) -> Result<()> {
        let mut import = self.muster(binaries, &["image", "import"])?;
        import.args([
            "--osystem",
            "debian",
            "--release",
            "bookworm",
            "--arch",
            "amd64",
        ]);
        import
            .arg("--kernel")
            .arg(image.kernel())
            .arg("--initrd")
            .arg(image.initrd());
        run(import.arg("--squashfs").arg(image.squashfs())).context("importing the image")?;
        self.import_loaders(binaries)
    }

    /// Gives the region the boot loaders only: DHCP answers firmware with their names.
    pub fn import_loaders(&self, binaries: &Path) -> Result<()> {
        let folder = self.folder.join("loaders");
        loaders::gather(&folder)?;
        let mut import = self.muster(binaries, &["image", "import-loaders", "--dir"])?;
        run(import.arg(&folder)).context("importing the boot loaders")?;
        Ok(())
    }

    /// The operator's command line on the region's host. The key goes by the environment.
    pub fn muster(&self, binaries: &Path, arguments: &[&str]) -> Result<Command> {
        let mut command = in_namespace(&self.names.region(), binaries.join("muster"));
        command
            .args(arguments)
            .env("MUSTER_URL", self.region_url())
            .env(
                "MUSTER_API_KEY",
                self.region.key().context("there is no API key yet")?,
            );
        Ok(command)
    }

    pub fn region(&self) -> &Region {
        &self.region
    }

    /// As seen on the lab's management network.
    pub fn region_url(&self) -> String {
        format!("http://{}:{API_PORT}/MAAS", plan::region_mgmt().addr())
    }

    pub fn racks(&self) -> &[Rack] {
        &self.racks
    }

    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    pub fn network(&self) -> &BootNetwork {
        &self.network
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn logs(&self) -> &Path {
        &self.logs
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// An error when a program of the lab has ended.
    pub fn check(&mut self) -> Result<()> {
        self.region_process
            .iter_mut()
            .chain(&mut self.processes)
            .try_for_each(Process::check)
    }

    /// Usage of what runs on the region's and the racks' hosts, by program name.
    pub fn usage(&self) -> Result<BTreeMap<String, usage::Usage>> {
        let mut hosts = vec![self.names.region()];
        hosts.extend((1..=self.rack_count).map(|number| self.names.rack(number)));
        usage::measure(&hosts)
    }

    pub fn summary(&self) -> Result<Summary> {
        Ok(Summary {
            name: self.names.lab.clone(),
            region_url: self.region_url(),
            api_key: self.region.key().context("there is no API key yet")?,
            region_namespace: self.names.region(),
            racks: self.racks.clone(),
            client: Client {
                namespace: self.names.client(),
                interface: "boot".to_owned(),
                addresses: vec![self.network.client().to_string()],
            },
            switch_namespace: self.names.switch(),
            network: self.network,
            logs: self.logs.clone(),
            folder: self.folder.clone(),
        })
    }

    /// Copies what regiond's PostgreSQL wrote to the logs, for a failure's sake.
    pub fn save_logs(&self) {
        let postgres = self.folder.join("region/postgres/log");
        if postgres.exists() {
            std::fs::copy(&postgres, self.log("postgres")).ok();
        }
        for machine in &self.machines {
            std::fs::copy(
                machine.chassis_log(),
                self.log(&format!("{}.chassis", machine.name)),
            )
            .ok();
        }
    }

    /// Lets the lab stand when this process ends. `reaper::remove` ends it.
    pub fn keep(self) -> Result<Summary> {
        let summary = self.summary()?;
        let text = serde_json::to_string_pretty(&summary).context("writing the summary")?;
        write_secret(&self.folder.join(SUMMARY), &text)?;
        self.reaper.keep()?;
        Ok(summary)
    }
}

/// What the process of rack `number` is called among the lab's.
pub(crate) fn rack_process(number: usize) -> String {
    format!("rackd of rack{number}")
}

/// Makes the lab's folder, which nobody may have made already. A lab that ends takes the empty base with it, so
/// the base may be gone between two lines.
fn make_folder(base: &Path, folder: &Path) -> Result<()> {
    const TRIES: usize = 5;
    let mut tries = 0;
    loop {
        let made = std::fs::create_dir_all(base)
            .and_then(|()| std::fs::set_permissions(base, Permissions::from_mode(0o755)))
            .and_then(|()| std::fs::create_dir(folder));
        tries += 1;
        match made {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && tries < TRIES => {}
            other => return other.with_context(|| format!("making {}", folder.display())),
        }
    }
}

/// The text of `wanted` in the entry of a list whose `key` is `value`.
fn field_of(list: &Value, key: &str, value: &str, wanted: &str) -> Option<String> {
    let entry = list
        .as_array()?
        .iter()
        .find(|entry| entry.get(key).is_some_and(|found| found == value))?;
    Some(entry.get(wanted)?.as_str()?.to_owned())
}

fn number(object: &Value, name: &str) -> Result<String> {
    let value = object.get(name).and_then(Value::as_i64);
    Ok(value
        .with_context(|| format!("the region's answer has no {name}: {object}"))?
        .to_string())
}

pub(crate) fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}
