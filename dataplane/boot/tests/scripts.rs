//! Whole scripts, for every loader and purpose, and what must never get into one.

use std::net::IpAddr;

use boot::*;

const RACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 99, 0, 1));
const KINDS: [ConfigKind; 3] = [ConfigKind::Pxelinux, ConfigKind::Grub, ConfigKind::Ipxe];

fn machine(purpose: Purpose) -> Machine {
    let image = |name| format!("/images/0f3a/debian/amd64/generic/bookworm/uploaded/{name}");
    Machine {
        system_id: "abc123".into(),
        hostname: "node-1".into(),
        domain: "maas".into(),
        macs: vec![wire::ethernet::Mac([0x52, 0x54, 0, 0, 1, 0])],
        purpose,
        arch: "amd64".into(),
        subarch: "generic".into(),
        osystem: "debian".into(),
        release: "bookworm".into(),
        label: "uploaded".into(),
        kernel: image("boot-kernel"),
        initrd: image("boot-initrd"),
        squashfs: image("squashfs"),
        extra_options: "".into(),
        ephemeral_options: "console=ttyS0".into(),
        boot_window: true,
    }
}

fn settings() -> Settings {
    Settings {
        log_port: 5247,
        enlist: true,
        ..Settings::default()
    }
}

fn script(kind: ConfigKind, machine: &Machine) -> String {
    render(kind, machine, RACK, RACK_HTTP_PORT, &settings()).unwrap()
}

const LINE: &str = "nomodeset \
    root=squash:http://10.99.0.1:5248/images/0f3a/debian/amd64/generic/bookworm/uploaded/squashfs \
    ip=::::node-1:BOOTIF:dhcp ip6=off cc:{'datasource_list': ['MAAS']}end_cc \
    cloud-config-url=http://10.99.0.1:5248/MAAS/metadata/latest/by-id/abc123/?op=get_preseed \
    ro overlayroot=tmpfs overlayroot_cfgdisk=disabled log_host=10.99.0.1 log_port=5247 console=ttyS0";

#[test]
fn pxelinux_boots_by_http() {
    let want = format!(
        "DEFAULT execute\n\nLABEL execute\n  SAY Booting as the region says...\n  \
         KERNEL http://10.99.0.1:5248/images/0f3a/debian/amd64/generic/bookworm/uploaded/boot-kernel\n  \
         INITRD http://10.99.0.1:5248/images/0f3a/debian/amd64/generic/bookworm/uploaded/boot-initrd\n  \
         APPEND {LINE}\n  IPAPPEND 2\n"
    );
    assert_eq!(
        script(ConfigKind::Pxelinux, &machine(Purpose::Commissioning)),
        want
    );
    assert_eq!(
        script(ConfigKind::Pxelinux, &machine(Purpose::Xinstall)),
        want
    );
}

#[test]
fn grub_loads_http_first_and_has_its_braces_escaped() {
    let line = LINE
        .replace("cc:{", r"cc:\{")
        .replace("}end_cc", r"\}end_cc");
    let want = format!(
        "set default=0\nset timeout=0\ninsmod http\n\nmenuentry 'Ephemeral' {{\n  \
         echo 'Booting as the region says...'\n  \
         linux (http,10.99.0.1:5248)/images/0f3a/debian/amd64/generic/bookworm/uploaded/boot-kernel \
         {line} BOOTIF=01-${{net_default_mac}}\n  \
         initrd (http,10.99.0.1:5248)/images/0f3a/debian/amd64/generic/bookworm/uploaded/boot-initrd\n\
         }}\n"
    );
    assert_eq!(
        script(ConfigKind::Grub, &machine(Purpose::Commissioning)),
        want
    );
}

#[test]
fn ipxe_names_its_initrd() {
    let want = format!(
        "#!ipxe\nkernel http://10.99.0.1:5248/images/0f3a/debian/amd64/generic/bookworm/uploaded/boot-kernel \
         initrd=initrd {LINE} BOOTIF=01-${{mac:hexhyp}}\n\
         initrd --name initrd \
         http://10.99.0.1:5248/images/0f3a/debian/amd64/generic/bookworm/uploaded/boot-initrd\nboot\n"
    );
    assert_eq!(
        script(ConfigKind::Ipxe, &machine(Purpose::Commissioning)),
        want
    );
}

#[test]
fn an_unknown_machine_enlists() {
    let unknown = Machine {
        system_id: String::new(),
        hostname: String::new(),
        ..machine(Purpose::Enlist)
    };
    for kind in KINDS {
        let script = script(kind, &unknown);
        let url = "cloud-config-url=http://10.99.0.1:5248/MAAS/metadata/latest/enlist-preseed/?op=get_enlist_preseed ";
        assert!(script.contains(url), "{script}");
        assert!(
            script.contains(" ip=::::maas-enlist:BOOTIF:dhcp "),
            "{script}"
        );
    }
}

#[test]
fn tokens_that_come_and_go() {
    let full = |machine: &Machine, settings: &Settings, rack: &str| {
        let rack = rack.parse().unwrap();
        render(ConfigKind::Pxelinux, machine, rack, 5248, settings).unwrap()
    };
    let base = machine(Purpose::Commissioning);
    let plain = full(&base, &settings(), "10.99.0.1");
    assert!(!plain.contains("apparmor") && !plain.contains("---"));

    let old = Machine {
        release: "focal".into(),
        ..base.clone()
    };
    assert!(full(&old, &settings(), "10.99.0.1").contains("=disabled apparmor=0 log_host"));

    let global = Settings {
        kernel_options: "a=1".into(),
        log_host: "10.0.0.9".into(),
        ..settings()
    };
    let extra = Machine {
        extra_options: " b=2  c ".into(),
        ..base.clone()
    };
    let script = full(&extra, &global, "10.99.0.1");
    assert!(script.contains("log_host=10.0.0.9 log_port=5247 console=ttyS0 --- a=1 b=2 c\n"));

    let script = full(&base, &settings(), "fd99::1");
    assert!(script.contains("root=squash:http://[fd99::1]:5248/images/"));
    assert!(script.contains(" ip=off ip6=dhcp ") && script.contains("log_host=fd99::1 "));
}

#[test]
fn local_and_poweroff_need_no_image() {
    let bare = |purpose| Machine {
        kernel: String::new(),
        initrd: String::new(),
        squashfs: String::new(),
        ..machine(purpose)
    };
    let cases = [
        (
            Purpose::Local,
            ConfigKind::Pxelinux,
            "KERNEL chain.c32\n  APPEND hd0\n",
        ),
        (
            Purpose::Local,
            ConfigKind::Grub,
            "chainloader ($root)/efi/boot/bootx64.efi\n",
        ),
        (
            Purpose::Local,
            ConfigKind::Ipxe,
            "sanboot --no-describe --drive 0x80",
        ),
        (
            Purpose::Poweroff,
            ConfigKind::Pxelinux,
            "KERNEL poweroff.c32\n",
        ),
        (Purpose::Poweroff, ConfigKind::Grub, "  halt\n"),
        (Purpose::Poweroff, ConfigKind::Ipxe, "\npoweroff\n"),
    ];
    for (purpose, kind, want) in cases {
        let script = script(kind, &bare(purpose));
        assert!(script.contains(want), "{purpose:?} {kind:?}: {script}");
        assert!(!script.contains("5248"), "{script}");
        assert_eq!(script.matches('{').count(), script.matches('}').count());
    }
    let arm = Machine {
        arch: "arm64".into(),
        ..bare(Purpose::Local)
    };
    assert!(script(ConfigKind::Grub, &arm).contains("bootaa64.efi"));
    for purpose in [Purpose::Commissioning, Purpose::Enlist, Purpose::Xinstall] {
        let error = render(ConfigKind::Grub, &bare(purpose), RACK, 5248, &settings());
        assert_eq!(error, Err(RenderError::Missing { field: "kernel" }));
    }
}

#[test]
fn nothing_in_a_record_becomes_another_line_or_command() {
    type Spoil = fn(&mut Machine);
    let cases: [(&str, Spoil); 8] = [
        ("hostname", |m| m.hostname = "x\nKERNEL http://evil/".into()),
        ("hostname", |m| m.hostname = "x y".into()),
        ("hostname", |m| m.hostname = "x:eth0".into()),
        ("system id", |m| m.system_id = "../x".into()),
        ("kernel", |m| m.kernel = "/images/x y".into()),
        ("initrd", |m| m.initrd = "http://evil/x".into()),
        ("squashfs", |m| m.squashfs = "/images/x\n".into()),
        ("ephemeral options", |m| {
            m.ephemeral_options = "quiet\r\nDEFAULT evil".into()
        }),
    ];
    for (field, spoil) in cases {
        for kind in KINDS {
            let mut machine = machine(Purpose::Commissioning);
            spoil(&mut machine);
            let result = render(kind, &machine, RACK, 5248, &settings());
            assert_eq!(result, Err(RenderError::Unsafe { field }), "{kind:?}");
        }
    }
}

#[test]
fn what_a_loader_would_interpret_is_quoted_or_refused() {
    let with = |options: &str| Machine {
        extra_options: options.into(),
        ..machine(Purpose::Commissioning)
    };
    let script_of = |kind, options: &str| render(kind, &with(options), RACK, 5248, &settings());
    let grub = script_of(ConfigKind::Grub, "a;reboot } $x 'q # b=1,2:3/4").unwrap();
    assert!(
        grub.contains(r" --- a\;reboot \} \$x \'q \# b=1,2:3/4 BOOTIF="),
        "{grub}"
    );
    for options in ["|| shell", "&& reboot", "a=${net0/mac}", "#x"] {
        assert!(script_of(ConfigKind::Ipxe, options).is_err(), "{options}");
        assert!(
            script_of(ConfigKind::Pxelinux, options).is_ok(),
            "{options}"
        );
    }
    assert!(script_of(ConfigKind::Ipxe, "a|b c&d {x}").is_ok());
}

#[test]
fn preloaders_ask_for_paths_that_are_routed() {
    let grub = render_preloader(ConfigKind::Grub, RACK, 5248).unwrap();
    let ipxe = render_preloader(ConfigKind::Ipxe, RACK, 5248).unwrap();
    assert_eq!(render_preloader(ConfigKind::Pxelinux, RACK, 5248), None);
    let filled = |script: &str| {
        script
            .replace("${net_default_mac}", "52:54:00:00:01:00")
            .replace("${mac:hexhyp}", "52-54-00-00-01-00")
            .replace("${grub_cpu}", "x86_64")
            .replace("${buildarch}", "i386")
    };
    let paths: Vec<String> = filled(&grub)
        .lines()
        .filter_map(|line| line.strip_prefix("configfile "))
        .map(str::to_string)
        .chain(
            filled(&ipxe)
                .split_whitespace()
                .filter_map(|word| word.strip_prefix("http://10.99.0.1:5248"))
                .map(str::to_string),
        )
        .collect();
    assert_eq!(paths.len(), 4, "{paths:?}");
    for pair in paths.chunks(2) {
        let selectors: Vec<_> = pair
            .iter()
            .map(|path| route(path).unwrap().unwrap().selector)
            .collect();
        assert!(matches!(selectors[0], Selector::Mac(_)), "{pair:?}");
        assert!(matches!(&selectors[1], Selector::Default { arch, .. } if arch == "amd64"));
    }
}
