fn main() {
    capnpc::CompilerCommand::new()
        .src_prefix(".")
        .file("muster.capnp")
        .run()
        .expect("the `capnp` compiler (Debian package capnproto) turns muster.capnp into Rust");
}
