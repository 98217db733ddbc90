//! `muster image`: what machines boot.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::client::Client;
use crate::output::{Column, Output, text};

/// Octets of one upload request.
const CHUNK_BYTES: usize = 4 << 20;
/// Files of one loader folder at most: a slip of the path is not to upload a disk.
const LOADERS_MAX: usize = 2000;

#[derive(Subcommand)]
pub enum Command {
    /// The images machines can boot.
    List,
    /// Upload an operating system's kernel, initrd and squashfs.
    Import(Import),
    /// Upload a folder of boot loaders, under the names that firmware asks for.
    ImportLoaders {
        /// The folder; files below it keep their paths as names.
        #[arg(long)]
        dir: PathBuf,
    },
}

#[derive(Args)]
pub struct Import {
    /// The operating system: debian.
    #[arg(long, default_value = "debian")]
    osystem: String,
    /// Its release: trixie.
    #[arg(long)]
    release: String,
    /// The architecture it is for: amd64, arm64.
    #[arg(long, default_value = "amd64")]
    arch: String,
    /// The kernel's file.
    #[arg(long)]
    kernel: PathBuf,
    /// The initial RAM disk's file.
    #[arg(long)]
    initrd: PathBuf,
    /// The root file system's file.
    #[arg(long)]
    squashfs: PathBuf,
    /// A name for people.
    #[arg(long)]
    title: Option<String>,
}

const COLUMNS: &[Column] = &[
    ("id", |row| text(row, "/id")),
    ("name", |row| text(row, "/name")),
    ("architecture", |row| text(row, "/architecture")),
    ("type", |row| text(row, "/type")),
    ("title", |row| text(row, "/title")),
    ("complete", |row| text(row, "/complete")),
];

impl Command {
    pub async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Command::List => output.list(client.list("boot-resources/", &[]).await?, COLUMNS),
            Command::Import(import) => {
                let name = format!("{}/{}", import.osystem, import.release);
                let files = [
                    ("boot-kernel", &import.kernel),
                    ("boot-initrd", &import.initrd),
                    ("squashfs", &import.squashfs),
                ];
                let mut answer = Value::Null;
                for (filetype, path) in files {
                    let fields = [
                        ("name", name.clone()),
                        ("architecture", format!("{}/generic", import.arch)),
                        ("filetype", filetype.to_owned()),
                        ("title", import.title.clone().unwrap_or_default()),
                    ];
                    answer = upload(client, path, &fields).await?;
                }
                output.done(&answer, &format!("Imported {name} for {}.", import.arch));
            }
            Command::ImportLoaders { dir } => {
                let files = files_below(&dir)?;
                for path in &files {
                    let name = path
                        .strip_prefix(&dir)
                        .context("a file outside the folder")?;
                    let fields = [
                        ("name", name.to_string_lossy().into_owned()),
                        ("filetype", "bootloader".to_owned()),
                    ];
                    upload(client, path, &fields).await?;
                }
                let sentence = format!("Imported {} boot loader files.", files.len());
                output.done(&Value::from(files.len()), &sentence);
            }
        }
        Ok(())
    }
}

/// Announces the file and sends what the region does not have yet.
async fn upload(client: &Client, path: &Path, fields: &[(&str, String)]) -> anyhow::Result<Value> {
    let (sha256, size_bytes) = hash(path)?;
    let mut fields = fields.to_vec();
    fields.push(("sha256", hex::encode(sha256)));
    fields.push(("size", size_bytes.to_string()));
    let answer = client.post("boot-resources/", &fields).await?;
    let Some(uri) = answer.get("upload_uri").and_then(Value::as_str) else {
        return Ok(answer);
    };
    let sent = answer.get("received").and_then(Value::as_u64).unwrap_or(0);
    send(client, path, uri, sent, size_bytes).await?;
    Ok(answer)
}

async fn send(
    client: &Client,
    path: &Path,
    uri: &str,
    sent: u64,
    size_bytes: u64,
) -> anyhow::Result<()> {
    let reading = || format!("reading {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(sent)).with_context(reading)?;
    let bar = progress(path, size_bytes);
    bar.set_position(sent);
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        (&mut file)
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut chunk)
            .with_context(reading)?;
        if chunk.is_empty() {
            break;
        }
        let octets = chunk.len() as u64;
        client
            .put_bytes(uri, chunk)
            .await
            .with_context(|| format!("sending {}", path.display()))?;
        bar.inc(octets);
    }
    bar.finish_and_clear();
    Ok(())
}

fn progress(path: &Path, size_bytes: u64) -> ProgressBar {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let bar = ProgressBar::new(size_bytes).with_message(name);
    if !std::io::stderr().is_terminal() || size_bytes < CHUNK_BYTES as u64 {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style =
        ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn hash(path: &Path) -> anyhow::Result<([u8; 32], u64)> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size_bytes = 0;
    loop {
        let read = file
            .read(&mut buffer)
            .with_context(|| format!("reading {}", path.display()))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        size_bytes += read as u64;
    }
    Ok((hasher.finalize().into(), size_bytes))
}

/// Every file below the folder, links followed, in a fixed order.
fn files_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder)
            .with_context(|| format!("reading the folder {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
            if files.len() + folders.len() > LOADERS_MAX {
                bail!(
                    "more than {LOADERS_MAX} files below {}: is it the right folder?",
                    dir.display()
                );
            }
        }
    }
    files.sort();
    Ok(files)
}
