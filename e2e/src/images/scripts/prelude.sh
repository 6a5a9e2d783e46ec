# Makes a disk image for the tests. Runs as PID 1 of a PID and mount namespace of its own: its end, however it comes,
# ends every process below it, drops every mount, and with the mounts the loop devices (mount -o loop lets the kernel
# detach them). Nothing here needs undoing.
#
# Variables: PART (folder that gets what is made), TREE and OTHER_TREE (ext4 images of whole systems, only read),
# IN_MEMORY (1: the work is done in a tmpfs). Every tool that writes a file system, a boot loader or a package is the
# tree's own, so that this host needs none of them and the results fit the system they are for.
set -eu

# The parent learns this process's pid (/proc is still the outer one) and answers once it holds it by pidfd. A parent
# that died meanwhile closes the pipe, and `read` fails: the one moment that the death signal does not cover.
read -r outer_pid _ </proc/self/stat
echo "$outer_pid"
read -r go
[ "$go" = go ]
exec </dev/null >"$PART/log" 2>&1
mount -t proc proc /proc

export LC_ALL=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 022
work=$PART/work tree=$PART/work/tree root=$PART/work/root
mkdir "$work"
if [ "$IN_MEMORY" = 1 ]; then
  mount -t tmpfs -o mode=0755,size=6g tmpfs "$work"
fi
mkdir "$tree" "$root"
set -x

# Mounts a tree: TREE on DIR. In it, /mnt is the work folder and /srv the one that gets what is made.
open_tree() {
  mount -o loop,ro,noload "$1" "$2"
  kernel_files "$2"
  mount --bind "$work" "$2/mnt"
  mount --bind "$PART" "$2/srv"
}

# What programs in a changed root expect of /proc and /dev. Loop devices are there for grub-probe.
kernel_files() {
  mount -t proc proc "$1/proc"
  mount -t tmpfs -o mode=0755 tmpfs "$1/dev"
  for node in null zero full random urandom tty; do cp -a "/dev/$node" "$1/dev/"; done
  mkdir -p "$1/dev/disk/by-uuid"
}

in_tree() { chroot "$tree" "$@"; }

uuid_of() { blkid -p -s UUID -o value "$1"; }

device_of() { findmnt -n -o SOURCE -M "$1" | sed 's/\[.*//'; }

# Makes the device of a mounted file system, and its UUID, known in a changed root: update-grub names the root file
# system by UUID only where /dev/disk/by-uuid has it.
device_in() {
  cp -a "$2" "$1/dev/"
  ln -s "../../${2##*/}" "$1/dev/disk/by-uuid/$(blkid -p -s UUID -o value "$2")"
}

# Copies the tree, and nothing that is mounted in it.
copy_tree() { cp -ax "$tree/." "$1/"; }

# The loader's configuration as Debian writes it, with what its cloud images have as defaults and an argument that
# nobody else would pass: a machine whose /proc/cmdline has that was started by this image's own configuration.
configure_grub() {
  cat >"$1/etc/default/grub" <<'EOT'
GRUB_DEFAULT=0
GRUB_TIMEOUT=1
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200 fleetbox_test=loader"
GRUB_TERMINAL="serial console"
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
EOT
  mkdir -p "$1/boot/grub"
  # It writes no entries for a root on a loop device, unless that has another device behind it: here, the same one.
  cp -a "$(device_of "$1")" "$1/dev/vda"
  printf '#!/bin/sh\necho "$1: (/dev/vda)"\n' >"$1/usr/local/sbin/losetup"
  chmod 755 "$1/usr/local/sbin/losetup"
  chroot "$1" update-grub
  rm "$1/usr/local/sbin/losetup"
  grep "^[[:space:]]linux[[:space:]]" "$1/boot/grub/grub.cfg"
}

# What the tests are told of an image: lines of "key value".
fact() { echo "$1 $2" >>"$PART/facts"; }

# Puts a file system's file into the disk at a MiB, holes left out.
put() { dd if="$1" of="$PART/disk.raw" bs=1M seek="$2" conv=notrunc,sparse status=none; }
