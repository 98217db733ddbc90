use lab::*;
fn main() {
    let fw: Vec<Firmware> = std::env::args().skip(2).map(|a| a.parse().unwrap()).collect();
    let name = std::env::args().nth(1).unwrap();
    let lab = Lab::start(&LabConfig { name, racks: 1, machines: fw, network: BootNetwork::default(), base: "/tmp/labx/labs".into(), logs: "/tmp/labx/logs".into(), accelerator: lab::kvm::Accelerator::Tcg }).unwrap();
    lab::loaders::gather(&lab.folder().join("tftp")).unwrap();
    println!("{}", lab.folder().display());
    let mut s = String::new();
    std::io::stdin().read_line(&mut s).unwrap();
    drop(lab);
}
