//! What a seed renders to, what it refuses, and that its volume can be read back.

#![expect(clippy::unwrap_used, reason = "a failing unwrap in a test is a failing test")]

use fleetbox_seed::{HostKeyPair, NetworkConfig, Seed, SeedError};
use fleetbox_spec::MachineName;
use proptest::prelude::*;
use serde_json::Value;

const CLIENT_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl client";
const HOST_PUBLIC: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIH4crU04b+wNpfSEd/5lom7BSJrd6riVAxmN759OqdYH web";
const HOST_PRIVATE: &str =
    "-----BEGIN OPENSSH PRIVATE KEY-----\nbm90IGEga2V5\n-----END OPENSSH PRIVATE KEY-----\n";

fn seed() -> Seed {
    let network =
        NetworkConfig::ipv4([0x52, 0x54, 0, 0xa, 0xb, 0xc], [10, 87, 3, 2].into(), 24, [10, 87, 3, 1].into());
    let host_key = HostKeyPair { private_openssh: HOST_PRIVATE.into(), public_line: HOST_PUBLIC.into() };
    Seed::new("web-0001", MachineName::new("web").unwrap(), CLIENT_KEY, host_key, network)
}

fn full_seed() -> Seed {
    let mut seed = seed();
    seed.domain = Some("lab.test".into());
    seed.network.ipv6 = Some(("fd00:87::2".parse().unwrap(), 64));
    seed.network.dns = vec!["10.87.3.1".parse().unwrap(), "fd00:87::1".parse().unwrap()];
    seed.network.search = vec!["lab.test".into()];
    seed.packages = vec!["nginx-light".into(), "g++".into()];
    seed.commands = vec!["systemctl enable --now nginx".into(), "echo 'a: \"b\" # {c}' > /etc/motd".into()];
    seed.grow_partition = false;
    seed
}

fn cloud_config(seed: &Seed) -> Value {
    let text = seed.render().unwrap().user_data;
    serde_json::from_str(text.strip_prefix("#cloud-config\n").unwrap()).unwrap()
}

#[test]
fn the_least_seed() {
    let files = seed().render().unwrap();
    insta::assert_snapshot!("least_user_data", files.user_data);
    insta::assert_snapshot!("least_meta_data", files.meta_data);
    insta::assert_snapshot!("least_network_config", files.network_config);
}

#[test]
fn a_seed_with_everything() {
    let files = full_seed().render().unwrap();
    insta::assert_snapshot!("full_user_data", files.user_data);
    insta::assert_snapshot!("full_network_config", files.network_config);
}

#[test]
fn a_private_key_without_a_last_line_end_is_given_one() {
    let mut s = seed();
    s.host_key.private_openssh = HOST_PRIVATE.trim_end().into();
    assert_eq!(cloud_config(&s)["ssh_keys"]["ed25519_private"], HOST_PRIVATE);
}

#[test]
fn debug_shows_no_private_key() {
    let s = seed();
    for shown in [format!("{s:?}"), format!("{:?}", s.render().unwrap())] {
        assert!(!shown.contains("bm90IGEga2V5"), "{shown}");
    }
}

/// What a change makes of a good seed: the error's text.
fn refused(change: impl FnOnce(&mut Seed)) -> String {
    let mut s = seed();
    change(&mut s);
    let error = s.to_iso().map(|_| "accepted".to_owned()).unwrap_or_else(|e: SeedError| e.to_string());
    assert!(!error.contains('\n') && !error.contains("bm90IGEga2V5"), "{error}");
    error
}

#[test]
fn bad_fields_are_refused_by_name() {
    for id in ["", "..", "a/b", "a\nb", "-a", &"x".repeat(65)] {
        assert!(refused(|s| s.instance_id = id.into()).starts_with("instance id"), "{id:?}");
    }
    for user in ["", "root", "Web", "a b", "a:b", "0a", "-a", "ä", &"x".repeat(33)] {
        assert!(refused(|s| s.user = user.into()).starts_with("user name"), "{user:?}");
    }
    for domain in ["", ".", "a..b", "a b", "-a.test", "a\n.test", &"x".repeat(64)] {
        assert!(refused(|s| s.domain = Some(domain.into())).starts_with("domain"), "{domain:?}");
        assert!(
            refused(|s| s.network.search = vec![domain.into()]).starts_with("search domain"),
            "{domain:?}"
        );
    }
    for package in ["", "-y", "a b", "a;b", "$(a)", "a\n"] {
        assert!(refused(|s| s.packages = vec![package.into()]).starts_with("package name"), "{package:?}");
    }
    assert_eq!(refused(|s| s.commands = vec!["true".into(), " ".into()]), "command 1 is empty");
    assert!(refused(|s| s.commands = vec!["a\0b".into()]).contains("NUL"));
}

#[test]
fn keys_of_another_shape_are_refused() {
    assert!(refused(|s| s.authorized_keys.clear()).contains("at least one"));
    let more = format!("{CLIENT_KEY}\nssh-ed25519 AAAAinjected");
    for (key, why) in [
        (more.as_str(), "line break"),
        ("command=\"id\" ssh-ed25519 AAAA", "key type"),
        ("ssh-ed25519", "base64"),
        ("ssh-ed25519 not/a/blob", "base64"),
        ("ssh-ed25519 AAAA\u{2028}x", "line break"),
        ("", "key type"),
    ] {
        let error = refused(|s| s.authorized_keys.push(key.into()));
        assert!(error.starts_with("authorized key 1") && error.contains(why), "{key:?}: {error}");
    }
    assert!(
        refused(|s| s.host_key.public_line = CLIENT_KEY.replace("ssh-ed25519", "ssh-rsa"))
            .contains("ssh-ed25519")
    );
    assert!(refused(|s| s.host_key.public_line = format!("{HOST_PUBLIC}\n")).contains("line break"));
    for private in ["", HOST_PUBLIC, "-----BEGIN RSA PRIVATE KEY-----\nAA==\n-----END RSA PRIVATE KEY-----\n"]
    {
        assert!(
            refused(|s| s.host_key.private_openssh = private.into()).contains("private half"),
            "{private:?}"
        );
    }
    let odd = HOST_PRIVATE.replace("bm90", "bm90\"\n  evil: ");
    assert!(refused(|s| s.host_key.private_openssh = odd).contains("not base64"));
}

#[test]
fn addresses_that_cannot_work_are_refused() {
    for (change, why) in [
        ((|n| n.mac = [1, 2, 3, 4, 5, 6]) as fn(&mut NetworkConfig), "MAC address"),
        (|n| n.mac = [0; 6], "MAC address"),
        (|n| n.prefix = 31, "prefix length"),
        (|n| n.prefix = 0, "prefix length"),
        (|n| n.prefix = 255, "prefix length"),
        (|n| n.ipv4 = [10, 87, 3, 0].into(), "its network's own or broadcast"),
        (|n| n.ipv4 = [10, 87, 3, 255].into(), "its network's own or broadcast"),
        (|n| n.ipv4 = [127, 0, 0, 2].into(), "not a unicast"),
        (|n| n.ipv4 = [224, 0, 0, 2].into(), "not a unicast"),
        (|n| n.gateway = [10, 87, 4, 1].into(), "not in the address's network"),
        (|n| n.gateway = n.ipv4, "own address"),
        (|n| n.ipv6 = Some(("fe80::1".parse().unwrap(), 64)), "IPv6 address"),
        (|n| n.ipv6 = Some(("fd00::1".parse().unwrap(), 128)), "IPv6 prefix"),
        (|n| n.dns = vec!["0.0.0.0".parse().unwrap()], "DNS server"),
    ] {
        let error = refused(|s| change(&mut s.network));
        assert!(error.contains(why), "{why}: {error}");
    }
}

/// A reader of its own for what the writer promises: volume label, and file names to contents.
fn read_iso(iso: &[u8]) -> (String, Vec<(String, u32, Vec<u8>)>) {
    let le32 = |at: usize| u32::from_le_bytes(iso[at..at + 4].try_into().unwrap());
    let be32 = |at: usize| u32::from_be_bytes(iso[at..at + 4].try_into().unwrap());
    let pvd = 16 * 2048;
    assert_eq!(&iso[pvd..pvd + 7], b"\x01CD001\x01");
    assert_eq!(&iso[pvd + 2048..pvd + 2048 + 7], b"\xffCD001\x01");
    assert_eq!(le32(pvd + 80) as usize * 2048, iso.len(), "volume space size");
    assert_eq!(le32(pvd + 80), be32(pvd + 84));
    let label = String::from_utf8(iso[pvd + 40..pvd + 72].to_vec()).unwrap();
    let (root, len) = (le32(pvd + 156 + 2) as usize * 2048, le32(pvd + 156 + 10) as usize);

    let (mut at, mut index, mut files) = (root, 0, Vec::new());
    while at < root + len && iso[at] != 0 {
        let record = &iso[at..at + usize::from(iso[at])];
        let id_len = usize::from(record[32]);
        let (extent, size) = (le32(at + 2) as usize * 2048, le32(at + 10) as usize);
        assert_eq!((le32(at + 2), le32(at + 10)), (be32(at + 6), be32(at + 14)));
        let mut system_use = &record[(33 + id_len).next_multiple_of(2)..];
        let (mut name, mut mode, mut marks) = (String::new(), 0, Vec::new());
        while system_use.len() >= 4 {
            let (entry, rest) = system_use.split_at(usize::from(system_use[2]));
            match &entry[..2] {
                b"NM" => name = String::from_utf8(entry[5..].to_vec()).unwrap(),
                b"PX" => mode = u32::from_le_bytes(entry[4..8].try_into().unwrap()),
                mark => marks.push(mark.to_vec()),
            }
            system_use = rest;
        }
        match index {
            0 => assert_eq!((&record[33..34], marks), (&[0][..], vec![b"SP".to_vec(), b"ER".to_vec()])),
            1 => assert_eq!(&record[33..34], &[1]),
            _ => files.push((name, mode, iso[extent..extent + size].to_vec())),
        }
        at += record.len();
        index += 1;
    }
    (label.trim_end().to_owned(), files)
}

#[test]
fn the_volume_reads_back() {
    let mut s = full_seed();
    // Larger than a sector, so that extents do not all have one sector.
    s.commands.push(format!("# {}", "x".repeat(9000)));
    let files = s.render().unwrap();
    let (label, read) = read_iso(&s.to_iso().unwrap());
    assert_eq!(label, "cidata");
    let wanted = [
        ("meta-data", files.meta_data),
        ("network-config", files.network_config),
        ("user-data", files.user_data),
    ]
    .map(|(name, text)| (name.to_owned(), 0o100_400, text.into_bytes()));
    assert_eq!(read, wanted);
}

#[test]
fn equal_seeds_are_equal_bytes() {
    assert_eq!(full_seed().to_iso().unwrap(), full_seed().to_iso().unwrap());
}

#[test]
fn a_file_that_no_seed_can_hold_is_refused() {
    let error = refused(|s| s.commands = vec!["x".repeat(17 << 20)]);
    assert!(error.starts_with("seed file user-data has"), "{error}");
}

/// PyYAML's `NON_PRINTABLE` (yaml/reader.py): one such character and the whole document is refused. Of what it
/// accepts, the further line breaks would be folded.
fn yaml_reads_as_is(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
        && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_command_arrives_unchanged(commands in proptest::collection::vec(any::<String>(), 0..4)) {
        let mut s = seed();
        s.commands = commands.iter().filter(|c| !c.contains('\0') && !c.trim().is_empty()).cloned().collect();
        let text = s.render().unwrap().user_data;
        prop_assert!(text.chars().all(yaml_reads_as_is), "{text}");
        let config = cloud_config(&s);
        let got: Vec<String> = serde_json::from_value(config.get("runcmd").cloned().unwrap_or(Value::Array(vec![]))).unwrap();
        prop_assert_eq!(got, s.commands);
        let keys = |config: &Value| config.as_object().unwrap().keys().filter(|k| *k != "runcmd").cloned().collect::<Vec<_>>();
        prop_assert_eq!(keys(&config), keys(&cloud_config(&seed())));
    }

    #[test]
    fn no_text_in_a_field_becomes_configuration(
        text in prop_oneof![any::<String>(), "[a-z]{1,5}[\n\r\"'{}:#, ]{0,2}[a-z]{0,5}"],
        field in 0..6,
    ) {
        let mut s = seed();
        match field {
            0 => s.instance_id = text,
            1 => s.user = text,
            2 => s.domain = Some(text),
            3 => s.authorized_keys = vec![format!("ssh-ed25519 AAAA {text}")],
            4 => s.packages = vec![text],
            _ => s.network.search = vec![text],
        }
        if let Ok(files) = s.render() {
            let config = cloud_config(&s);
            prop_assert_eq!(config["users"].as_array().unwrap().len(), 1);
            prop_assert_eq!(config["users"][0].as_object().unwrap().len(), 6);
            let meta: Value = serde_json::from_str(&files.meta_data).unwrap();
            prop_assert_eq!(meta.as_object().unwrap().len(), 3);
            prop_assert_eq!(&meta["dsmode"], "local");
            let key = config["users"][0]["ssh_authorized_keys"][0].as_str().unwrap();
            prop_assert!(!key.contains(['\n', '\r']));
            prop_assert!(!config["users"][0]["name"].as_str().unwrap().contains([' ', ':', '\n', '/']));
        }
    }

    #[test]
    fn the_volume_holds_what_was_rendered(command in any::<String>(), n in 1..3000usize) {
        let mut s = seed();
        s.commands = vec![format!("# {}", command.replace('\0', "").repeat(n.min(3000 / command.len().max(1)).max(1)))];
        let files = s.render().unwrap();
        let (_, read) = read_iso(&s.to_iso().unwrap());
        prop_assert_eq!(&read[2].2, files.user_data.as_bytes());
    }
}
