//! grub.cfg files as the distributions' grub-mkconfig writes them, shortened where nothing is decided.

use super::*;
use proptest::prelude::*;

/// Debian 12's genericcloud image.
const DEBIAN: &str = r#"
### BEGIN /etc/grub.d/00_header ###
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi

if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  fi
}
terminal_input console serial
if [ x$feature_timeout_style = xy ] ; then
  set timeout_style=menu
  set timeout=5
fi
### BEGIN /etc/grub.d/10_linux ###
menuentry 'Debian GNU/Linux' --class debian --class gnu-linux --class os $menuentry_id_option 'gnulinux-simple-86a2c2d4' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	insmod part_gpt
	insmod ext2
	search --no-floppy --fs-uuid --set=root 86a2c2d4-0000-4000-8000-000000000001
	echo	'Loading Linux 6.1.0-21-cloud-amd64 ...'
	linux	/boot/vmlinuz-6.1.0-21-cloud-amd64 root=PARTUUID=0d1e2f3a-1111-4222-8333-444455556666 ro  console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200 consoleblank=0
	echo	'Loading initial ramdisk ...'
	initrd	/boot/initrd.img-6.1.0-21-cloud-amd64
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-86a2c2d4' {
	menuentry 'Debian GNU/Linux, with Linux 6.1.0-21-cloud-amd64' --class debian $menuentry_id_option 'gnulinux-6.1.0-21-advanced' {
		linux	/boot/vmlinuz-6.1.0-21-cloud-amd64 root=PARTUUID=0d1e2f3a ro
		initrd	/boot/initrd.img-6.1.0-21-cloud-amd64
	}
	menuentry 'Debian GNU/Linux, with Linux 6.1.0-21-cloud-amd64 (recovery mode)' --class debian $menuentry_id_option 'gnulinux-6.1.0-21-recovery' {
		linux	/boot/vmlinuz-6.1.0-21-cloud-amd64 root=PARTUUID=0d1e2f3a ro single
		initrd	/boot/initrd.img-6.1.0-21-cloud-amd64
	}
	menuentry 'Debian GNU/Linux, with Linux 6.1.0-18-cloud-amd64' --class debian $menuentry_id_option 'gnulinux-6.1.0-18-advanced' {
		linux	/boot/vmlinuz-6.1.0-18-cloud-amd64 root=PARTUUID=0d1e2f3a ro
		initrd	/boot/initrd.img-6.1.0-18-cloud-amd64
	}
}
### BEGIN /etc/grub.d/41_custom ###
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
elif [ -z "${config_directory}" -a -f  $prefix/custom.cfg ]; then
  source $prefix/custom.cfg
fi
"#;

/// Ubuntu 22.04's server cloud image: tries without an initramfs first, a partition of its own for /boot.
const UBUNTU: &str = r#"
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
else
   set default="0"
fi
menuentry_id_option="--id"
menuentry 'Ubuntu' --class ubuntu --class gnu-linux $menuentry_id_option 'gnulinux-simple-LABEL=cloudimg-rootfs' {
	recordfail
	load_video
	gfxmode $linux_gfx_mode
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	search --no-floppy --fs-uuid --set=root 2bb02c9f-aaaa-4bbb-8ccc-000000000001
	if [ "${initrdfail}" = 1 ]; then
	  echo	'GRUB_FORCE_PARTUUID set, initrdless boot failed. Attempting with initrd.'
	  linux	/boot/vmlinuz-5.15.0-113-generic root=LABEL=cloudimg-rootfs ro  console=tty1 console=ttyS0
	  initrd	/boot/initrd.img-5.15.0-113-generic
	else
	  echo	'GRUB_FORCE_PARTUUID set, attempting initrdless boot.'
	  linux	/boot/vmlinuz-5.15.0-113-generic root=PARTUUID=4c5b6a79-1111-4222-8333-444455556666 ro  console=tty1 console=ttyS0 panic=-1
	fi
	initrdfail
}
"#;

/// Fedora 40's, and all of the Boot Loader Specification.
const FEDORA: &str = r#"
set pager=1
if [ -f ${config_directory}/grubenv ]; then
  load_env -f ${config_directory}/grubenv
elif [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${saved_entry}"
fi
# The blscfg command parses the BootLoaderSpec files stored in /boot/loader/entries and populates the boot menu.
insmod blscfg
blscfg
menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
	fwsetup
}
"#;

/// The EFI system partition's stub, on Ubuntu and Fedora.
const STUB: &str =
    "search.fs_uuid 2bb02c9f-aaaa root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n";

fn env(vars: &[(&str, &str)]) -> Vars {
    vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn of_debian() {
    let cfg = run(DEBIAN, &env(&[]));
    let first = &cfg.entries[0];
    assert_eq!(first.title, "Debian GNU/Linux");
    assert_eq!(first.kernel, "/boot/vmlinuz-6.1.0-21-cloud-amd64");
    assert_eq!(first.initrds, ["/boot/initrd.img-6.1.0-21-cloud-amd64"]);
    assert!(first.args.starts_with("root=PARTUUID=0d1e2f3a-1111-4222-8333-444455556666 ro console=tty0"));
    assert_eq!(cfg.entries.len(), 4);
    assert!(cfg.entries[3].args.contains("single"), "the rescue entry comes last");
    assert!(!cfg.bls && cfg.next.is_none());
}

#[test]
fn the_default_by_id_title_and_number() {
    for default in [
        "gnulinux-advanced-86a2c2d4>gnulinux-6.1.0-18-advanced",
        "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-18-cloud-amd64",
        "1>2",
    ] {
        let cfg = run(DEBIAN, &env(&[("next_entry", default)]));
        assert_eq!(cfg.entries[0].kernel, "/boot/vmlinuz-6.1.0-18-cloud-amd64", "{default}");
    }
    // One that is not there any more.
    assert_eq!(run(DEBIAN, &env(&[("next_entry", "gone")])).entries[0].title, "Debian GNU/Linux");
}

#[test]
fn of_ubuntu() {
    let cfg = run(UBUNTU, &env(&[]));
    assert_eq!(cfg.entries[0].kernel, "/boot/vmlinuz-5.15.0-113-generic");
    assert!(cfg.entries[0].initrds.is_empty());
    assert!(cfg.entries[0].args.contains("root=PARTUUID=4c5b6a79"));
}

#[test]
fn of_fedora_and_stubs() {
    let cfg = run(FEDORA, &env(&[("saved_entry", "0123-6.8.5-301.fc40.x86_64")]));
    assert!(cfg.bls && cfg.entries.is_empty());
    assert_eq!(cfg.default.as_deref(), Some("0123-6.8.5-301.fc40.x86_64"));
    assert_eq!(run(STUB, &env(&[])).next.as_deref(), Some("()/boot/grub/grub.cfg"));
}

#[test]
fn quotes_and_lines_that_go_on() {
    let cfg = run(
        "a='x y'\nmenuentry \"t \\\"$a\\\"\" {\n linux16 \\\n  /k \"root=${b}z\" \"\" ${b}\n initrd16 /i /j\n}\n",
        &env(&[]),
    );
    let e = &cfg.entries[0];
    assert_eq!((e.title.as_str(), e.kernel.as_str(), e.args.as_str()), ("t \"x y\"", "/k", "root=z "));
    assert_eq!(e.initrds, ["/i", "/j"]);
}

#[test]
fn depth_has_a_limit() {
    let deep = "if true; then ".repeat(5000);
    assert!(run(&deep, &env(&[])).entries.is_empty());
    let deep = "submenu x { ".repeat(5000);
    assert!(run(&deep, &env(&[])).entries.is_empty());
}

proptest! {
    #[test]
    fn no_text_panics(words in proptest::collection::vec(prop_oneof![
        Just("if"), Just("then"), Just("fi"), Just("else"), Just("elif"), Just("["), Just("]"), Just("!"), Just("-a"), Just("{"), Just("}"),
        Just("menuentry"), Just("submenu"), Just("function"), Just("for"), Just("do"), Just("done"), Just("\n"), Just(";"), Just("'"),
        Just("\""), Just("$"), Just("${a}"), Just("a=$a$a"), Just("linux"), Just("initrd"), Just("set"), Just("\\"), Just("x"), Just("default=1>0"),
    ], 0..60)) {
        let _ = run(&words.join(" "), &env(&[("a", "bb")]));
    }

    #[test]
    fn no_characters_panic(text in "\\PC{0,200}") {
        let _ = run(&text, &env(&[]));
    }
}
