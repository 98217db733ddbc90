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
        macs: vec![mac()],
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

fn mac() -> wire::ethernet::Mac {
    wire::ethernet::Mac([0x52, 0x54, 0, 0, 1, 0])
}

/// What a loader asks for first.
fn asked(kind: ConfigKind) -> ConfigRequest {
    ConfigRequest {
        kind,
        selector: Selector::Mac {
            mac: mac(),
            arch: String::new(),
        },
        attempt: 1,
    }
}

fn render(
    kind: ConfigKind,
    machine: &Machine,
    rack: IpAddr,
    port: u16,
    settings: &Settings,
) -> Result<String, RenderError> {
    boot::render(&asked(kind), machine, rack, port, settings)
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
        "DEFAULT execute\nONERROR next\n\nLABEL execute\n  SAY Booting as the region says...\n  \
         KERNEL http://10.99.0.1:5248/images/0f3a/debian/amd64/generic/bookworm/uploaded/boot-kernel\n  \
         INITRD http://10.99.0.1:5248/images/0f3a/debian/amd64/generic/bookworm/uploaded/boot-initrd\n  \
         APPEND {LINE}\n  IPAPPEND 2\n\nLABEL next\n  SAY Not loaded. Again...\n  \
         CONFIG http://10.99.0.1:5248/pxelinux.cfg/try-2/01-52-54-00-00-01-00 http://10.99.0.1:5248/\n"
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
         for pause in 1 2 4 8 0; do\n    \
         if linux (http,10.99.0.1:5248)/images/0f3a/debian/amd64/generic/bookworm/uploaded/boot-kernel \
         {line} BOOTIF=01-${{net_default_mac}}; then\n      \
         if initrd (http,10.99.0.1:5248)/images/0f3a/debian/amd64/generic/bookworm/uploaded/boot-initrd; then\n        \
         boot\n      fi\n    fi\n    echo 'Not loaded.'\n    sleep $pause\n  done\n  \
         echo 'On to the next boot device...'\n  exit 1\n\
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
        "#!ipxe\nset try 1\n:again\nkernel http://10.99.0.1:5248/images/0f3a/debian/amd64/generic/bookworm/uploaded/boot-kernel \
         initrd=initrd {LINE} BOOTIF=01-${{mac:hexhyp}} || goto failed_${{try}}\n\
         initrd --name initrd \
         http://10.99.0.1:5248/images/0f3a/debian/amd64/generic/bookworm/uploaded/boot-initrd \
         || goto failed_${{try}}\nboot || goto failed_${{try}}\n:failed_1\n"
    );
    let script = script(ConfigKind::Ipxe, &machine(Purpose::Commissioning));
    assert!(script.starts_with(&want), "{script}");
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
        assert!(!script.contains("/images/"), "{script}");
        assert_eq!(script.matches('{').count(), script.matches('}').count());
    }
    let arm = Machine {
        arch: "arm64".into(),
        ..bare(Purpose::Local)
    };
    assert!(script(ConfigKind::Grub, &arm).contains("bootaa64.efi"));
}

#[test]
fn without_an_image_of_its_architecture_a_script_says_so_and_ends() {
    type Lack = fn(&mut Machine);
    let lacks: [Lack; 3] = [
        |machine| machine.kernel.clear(),
        |machine| machine.initrd.clear(),
        |machine| machine.squashfs.clear(),
    ];
    for purpose in [Purpose::Commissioning, Purpose::Enlist, Purpose::Xinstall] {
        for (kind, ends) in [
            (ConfigKind::Pxelinux, "  LOCALBOOT 0\n"),
            (ConfigKind::Grub, "  exit 1\n}\n"),
            (ConfigKind::Ipxe, "\nexit 1\n"),
        ] {
            for lack in lacks {
                let mut machine = Machine {
                    arch: "arm64".into(),
                    ..machine(purpose)
                };
                lack(&mut machine);
                let script = script(kind, &machine);
                assert!(script.contains("There is no image to boot for arm64."));
                assert!(script.ends_with(ends), "{script}");
                assert!(!script.contains("http:"), "{script}");
            }
        }
    }
    let evil = Machine {
        arch: "x'\nreboot ${x}".into(),
        kernel: String::new(),
        ..machine(Purpose::Enlist)
    };
    for kind in KINDS {
        let script = script(kind, &evil);
        assert!(script.contains(" for xrebootx."), "{script}");
    }
}

/// Labels of an iPXE script in the order in which a machine comes by whose fetches all fail, and the seconds it waits.
fn way_of_ipxe(script: &str) -> (Vec<String>, Vec<u32>) {
    let lines: Vec<&str> = script.lines().collect();
    let place = |label: &str| lines.iter().position(|line| *line == format!(":{label}"));
    let (mut at, mut number, mut labels, mut pauses) = (0, String::new(), Vec::new(), Vec::new());
    loop {
        let line = lines[at];
        at += 1;
        if let Some((_, label)) = line.rsplit_once("|| goto ") {
            let label = label.replace("${try}", &number);
            at = place(&label).expect("a label");
            labels.push(label);
        } else if let Some(label) = line.strip_prefix("goto ") {
            at = place(label).expect("a label");
        } else if let Some(value) = line.strip_prefix("set try ") {
            number = value.to_string();
        } else if let Some(secs) = line.strip_prefix("sleep ") {
            pauses.push(secs.strip_suffix(" ||").unwrap().parse().unwrap());
        } else if line == "exit 1" {
            return (labels, pauses);
        }
    }
}

#[test]
fn a_fetch_that_fails_in_ipxe_is_tried_five_times_and_then_the_firmware_goes_on() {
    let all = ["failed_1", "failed_2", "failed_3", "failed_4", "failed_5"];
    let scripts = [
        script(ConfigKind::Ipxe, &machine(Purpose::Commissioning)),
        script(ConfigKind::Ipxe, &machine(Purpose::Enlist)),
        render_preloader(ConfigKind::Ipxe, RACK, 5248).unwrap(),
    ];
    for script in scripts {
        let (labels, pauses) = way_of_ipxe(&script);
        assert_eq!(
            (&labels[..], &pauses[..]),
            (&all.map(String::from)[..], &[1, 2, 4, 8][..])
        );
        // Nothing of an earlier try is taken along.
        assert_eq!(script.matches("\nimgfree\n").count(), 5);
        // Each step that fetches or boots has its way out.
        for line in script.lines() {
            let can_fail = ["kernel ", "initrd ", "boot", "imgfetch "];
            if can_fail.iter().any(|step| line.starts_with(step)) {
                assert!(line.ends_with("|| goto failed_${try}"), "{line}");
            }
        }
    }
}

#[test]
fn a_fetch_that_fails_in_grub_is_tried_five_times_and_then_the_firmware_goes_on() {
    let ephemeral = script(ConfigKind::Grub, &machine(Purpose::Commissioning));
    let first = render_preloader(ConfigKind::Grub, RACK, 5248).unwrap();
    for script in [&ephemeral, &first] {
        assert!(script.contains("for pause in 1 2 4 8 0; do\n"), "{script}");
        let (looped, after) = script.split_once("done\n").unwrap();
        assert!(looped.trim_end().ends_with("sleep $pause"), "{script}");
        assert!(after.contains("exit 1\n"), "{script}");
    }
    assert!(ephemeral.contains("if linux ") && ephemeral.contains("if initrd "));
    assert_eq!(
        ephemeral.matches("then\n").count(),
        ephemeral.matches("fi\n").count()
    );
}

#[test]
fn what_fails_in_pxelinux_is_tried_five_times_and_then_the_bios_goes_on() {
    for purpose in [Purpose::Commissioning, Purpose::Enlist, Purpose::Poweroff] {
        let (mut request, mut timeouts) = (asked(ConfigKind::Pxelinux), Vec::new());
        let last = loop {
            let script = boot::render(&request, &machine(purpose), RACK, 5248, &settings());
            let script = script.unwrap();
            assert!(
                script.starts_with("DEFAULT execute\nONERROR next\n"),
                "{script}"
            );
            let timeout = script
                .lines()
                .find_map(|line| line.strip_prefix("TIMEOUT "));
            assert_eq!(timeout.is_some(), script.contains("PROMPT 1\n"), "{script}");
            timeouts.extend(timeout.map(|tenths| tenths.parse::<u32>().unwrap()));
            let Some((_, next)) = script.split_once("  CONFIG http://10.99.0.1:5248/") else {
                break script;
            };
            // pxelinux puts the label that failed behind the line, and would stay in a folder of that name.
            let path = next.strip_suffix(" http://10.99.0.1:5248/\n").unwrap();
            let again = route(path).unwrap().unwrap();
            assert_eq!(again.selector, request.selector);
            assert_eq!(again.attempt, request.attempt + 1);
            request = again;
        };
        assert_eq!(timeouts, [10, 20, 40, 80], "{purpose:?}");
        assert_eq!(request.attempt, 5);
        assert!(last.ends_with(
            "LABEL next\n  SAY Not loaded. On to the next boot device...\n  LOCALBOOT 0\n"
        ));
    }
    // A number that no script of ours has ends, too.
    let request = ConfigRequest {
        attempt: 9,
        ..asked(ConfigKind::Pxelinux)
    };
    let script = boot::render(&request, &machine(Purpose::Enlist), RACK, 5248, &settings());
    assert!(script.unwrap().ends_with("LOCALBOOT 0\n"));
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
        .filter_map(|line| line.strip_prefix("  configfile "))
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
        assert!(matches!(&selectors[0], Selector::Mac { arch, .. } if arch == "amd64"));
        assert!(matches!(&selectors[1], Selector::Default { arch, .. } if arch == "amd64"));
    }
}
