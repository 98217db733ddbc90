#[allow(dead_code)]
mod work;

mod spool;

fn main() {}
