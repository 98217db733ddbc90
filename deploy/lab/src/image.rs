//! The ephemeral Linux that machines boot: built from `image/` by `build.sh`, kept in a cache.
//!
//! The cache key is the recipe and the versions of the packages that matter, so a changed recipe or a newer
//! kernel builds anew. The build takes about 40 s and 0.6 GB of scratch space; a cached image is about 110 MB.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::command::run;

/// Images kept in the cache, the newest.
const KEPT: usize = 2;
/// Packages whose versions belong to the key.
const KEY_PACKAGES: [&str; 3] = ["linux-image-cloud-amd64", "cloud-init", "systemd"];

/// The three files of a built image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Of recipe and package versions.
    pub key: String,
    pub folder: PathBuf,
}

impl Image {
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    pub fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }

    pub fn squashfs(&self) -> PathBuf {
        self.folder.join("squashfs")
    }

    fn is_complete(&self) -> bool {
        [self.kernel(), self.initrd(), self.squashfs()]
            .iter()
            .all(|file| file.exists())
    }
}

/// The image of the recipe in `recipe`, from the cache, or built into it: then `says` gets a line first.
pub fn ensure(recipe: &Path, cache: &Path, mut says: impl FnMut(&str)) -> Result<Image> {
    let key = key(recipe)?;
    let image = Image {
        folder: cache.join(format!("image-{key}")),
        key,
    };
    if image.is_complete() {
        return Ok(image);
    }
    if let Some(reason) = crate::missing_rights() {
        bail!("building the ephemeral image: {reason}");
    }
    says(
        "building the ephemeral image from Debian packages (40 s on a quiet machine, then cached)",
    );
    let scratch = cache.join(format!(".building-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
    let built = run(Command::new("bash")
        .arg(recipe.join("build.sh"))
        .arg(&scratch))
    .context("building the ephemeral image");
    // Another process may have been quicker: its image is as good.
    let moved = built.and_then(|_| match std::fs::rename(&scratch, &image.folder) {
        Err(_) if image.is_complete() => Ok(()),
        other => other.with_context(|| format!("moving the image to {}", image.folder.display())),
    });
    std::fs::remove_dir_all(&scratch).ok();
    moved?;
    ensure!(
        image.is_complete(),
        "the image recipe ended without its files in {}",
        image.folder.display()
    );
    prune(cache);
    Ok(image)
}

fn key(recipe: &Path) -> Result<String> {
    let mut files = Vec::new();
    list(recipe, &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let content =
            std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let name = file
            .strip_prefix(recipe)
            .unwrap_or(&file)
            .to_string_lossy()
            .into_owned();
        hash.update(format!("{name} {}\n", content.len()));
        hash.update(content);
    }
    hash.update(package_versions());
    Ok(hex::encode(&hash.finalize()[..8]))
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("listing {}", folder.display()))?
            .path();
        if path.is_dir() {
            list(&path, files)?;
        } else if path.extension().is_none_or(|extension| extension != "md") {
            files.push(path);
        }
    }
    Ok(())
}

/// The versions that apt would install now. Without apt's lists: nothing, and the recipe alone is the key.
fn package_versions() -> String {
    let policy =
        run(Command::new("apt-cache").arg("policy").args(KEY_PACKAGES)).unwrap_or_default();
    let candidates: Vec<&str> = policy
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("Candidate:"))
        .collect();
    candidates.join("\n")
}

fn prune(cache: &Path) {
    let mut images: Vec<(SystemTime, PathBuf)> = std::fs::read_dir(cache)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let is_image = entry.file_name().to_string_lossy().starts_with("image-");
            is_image.then_some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .collect();
    images.sort();
    for (_, folder) in images.iter().rev().skip(KEPT) {
        std::fs::remove_dir_all(folder).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_follows_the_recipe_and_not_its_readme() {
        let recipe = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| {
            std::fs::write(recipe.path().join(name), text).expect("written");
            key(recipe.path()).expect("a key")
        };
        let first = write("build.sh", "true");
        assert_eq!(write("README.md", "words"), first);
        assert_ne!(write("build.sh", "false"), first);
        assert_eq!(write("build.sh", "true"), first);
    }

    #[test]
    fn a_complete_cached_image_is_not_built_again() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (recipe, cache) = (dir.path().join("recipe"), dir.path().join("cache"));
        std::fs::create_dir(&recipe).expect("a folder");
        std::fs::write(recipe.join("build.sh"), "exit 1").expect("a recipe that can't build");
        let folder = cache.join(format!("image-{}", key(&recipe).expect("a key")));
        std::fs::create_dir_all(&folder).expect("a folder");
        for file in ["vmlinuz", "initrd", "squashfs"] {
            std::fs::write(folder.join(file), file).expect("written");
        }
        let image = ensure(&recipe, &cache, |line| panic!("it builds: {line}")).expect("cached");
        assert_eq!(image.folder, folder);
    }
}
