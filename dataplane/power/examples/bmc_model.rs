//! The model BMC as a program, for the lab and for tests with real clients.
//!
//! ```text
//! bmc_model LISTEN (--state DIR | --exec "PROGRAM ARG..") [--credentials FILE] [--suites 17,3]
//!     [--silent-after COMMANDS]
//! ```
//! `--silent-after`: answers so many commands in sessions, and then none; sessions still open.
//! `--exec` runs a program as ipmi_sim runs its chassis_control (`get power`, `set boot pxe`, ..).
//! Credentials: lines `user=`, `password=`, `k_g=` in FILE, or the variables BMC_USER, BMC_PASSWORD and
//! BMC_K_G. They are never arguments: those can be read by everyone on a machine. Prints `listening on
//! ADDRESS` when ready, and runs until it is killed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

#[path = "../tests/model/mod.rs"]
mod model;

use model::{Account, Chassis, Faults, FileChassis, Model, ProgramChassis, Seen};
use power::ipmi::crypto::Suite;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments
        .next()
        .ok_or("usage: bmc_model LISTEN (--state DIR | --exec PROGRAM)")?;
    let mut chassis: Option<Arc<dyn Chassis>> = None;
    let mut suites = vec![Suite::Sha256, Suite::Sha1];
    let faults = Arc::new(Faults::default());
    let mut account = Account {
        user: std::env::var("BMC_USER").unwrap_or_default(),
        password: std::env::var("BMC_PASSWORD").unwrap_or_default(),
        k_g: std::env::var("BMC_K_G").ok().map(String::into_bytes),
        privilege: 4,
    };
    while let Some(argument) = arguments.next() {
        let value = arguments
            .next()
            .ok_or_else(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--state" => {
                chassis = Some(Arc::new(FileChassis {
                    folder: value.into(),
                }))
            }
            "--exec" => {
                let mut words = value.split_whitespace().map(str::to_owned);
                let program = words.next().ok_or("--exec needs a program")?.into();
                let arguments = words.collect();
                chassis = Some(Arc::new(ProgramChassis { program, arguments }));
            }
            "--credentials" => {
                for line in std::fs::read_to_string(&value)?.lines() {
                    match line.split_once('=') {
                        Some(("user", text)) => account.user = text.to_owned(),
                        Some(("password", text)) => account.password = text.to_owned(),
                        Some(("k_g", text)) => account.k_g = Some(text.as_bytes().to_vec()),
                        _ => {}
                    }
                }
            }
            "--suites" => {
                suites = value
                    .split(',')
                    .map(|id| {
                        id.parse()
                            .ok()
                            .and_then(Suite::from_id)
                            .ok_or("suites are 17 and 3")
                    })
                    .collect::<Result<_, _>>()?;
            }
            "--silent-after" => {
                faults
                    .silent_after_commands
                    .store(value.parse()?, Ordering::Relaxed);
            }
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    let model = Model {
        account,
        suites,
        chassis: chassis.ok_or("--state or --exec is needed")?,
        faults,
        seen: Arc::new(Seen::default()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let socket = tokio::net::UdpSocket::bind(&listen).await?;
        println!("listening on {}", socket.local_addr()?);
        model.serve(socket).await;
        Ok(())
    })
}
