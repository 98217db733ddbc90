//! Which loader and which script a machine gets: pure functions, no IO, no clock, no state.
//!
//! ```text
//!   DISCOVER, REQUEST --> Firmware::of --> BootFiles --> DHCP's file, options 60 and 210
//!   TFTP, HTTP path   --> route        --> render    --> the script for pxelinux, GRUB or iPXE
//! ```
//!
//! File names, URLs and kernel parameters are MAAS's. What comes from a machine's record is checked before it
//! goes into a script: a host name or an option with a line break is an error, never another line. Not here:
//! where loaders and images are stored, who is allowed to boot.

mod arch;
mod command_line;
mod firmware;
mod machine;
mod methods;
mod path;
mod request;
mod script;
mod text;

pub use arch::Arch;
pub use command_line::{RACK_HTTP_PORT, RenderError};
pub use firmware::{BootFile, BootFiles, Firmware, IpxeFeatures, VendorIdentifying};
pub use machine::{Machine, Purpose, Settings};
pub use methods::Unserved;
pub use path::{PathError, clean_path, is_empty_when_missing};
pub use request::{ConfigKind, ConfigRequest, Selector, is_known_arch, route};
pub use script::{render, render_preloader};
pub use text::Text;
