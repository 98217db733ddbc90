//! The state folder: nobody but its owner looks inside.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use anyhow::Context;

use crate::config::Config;

/// Every command that may make the state folder calls this first.
pub fn prepare(config: &Config) -> anyhow::Result<()> {
    let group_inside = match &config.database.url {
        Some(_) => None,
        None => store::cluster::server_group(),
    };
    make_private(&config.state_dir, group_inside)?;
    make_private(&config.library_dir(), None)
}

/// Makes the folder, or mends an older one, whatever the umask: 0700. Where another group's server has its folder
/// inside (the private PostgreSQL of a regiond that runs as root), that group may pass through and no more: 0710.
fn make_private(folder: &Path, group_inside: Option<u32>) -> anyhow::Result<()> {
    let mode = if group_inside.is_some() { 0o710 } else { 0o700 };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("creating {}", folder.display()))?;
    let metadata = folder.metadata();
    let metadata = metadata.with_context(|| format!("looking at {}", folder.display()))?;
    if let Some(group) = group_inside
        && metadata.gid() != group
    {
        chown(folder, None, Some(group))
            .with_context(|| format!("changing the group of {}", folder.display()))?;
    }
    if metadata.mode() & 0o7777 != mode {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode))
            .with_context(|| format!("changing the mode of {}", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_folders_are_0700_also_those_that_were_there_before() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("a/region");
        let mode = || folder.metadata().unwrap().mode() & 0o7777;
        make_private(&folder, None).unwrap();
        assert_eq!(mode(), 0o700);
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        make_private(&folder, None).unwrap();
        assert_eq!(mode(), 0o700);
        let group = folder.metadata().unwrap().gid();
        make_private(&folder, Some(group)).unwrap();
        assert_eq!(mode(), 0o710);
    }
}
