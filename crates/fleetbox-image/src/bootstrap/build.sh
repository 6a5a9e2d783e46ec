# Builds a Debian disk image. Runs as PID 1 of a PID and mount namespace of its own, so that its end, however it
# comes, ends every process below it and drops every mount. Nothing here needs undoing.
#
# Variables: PART (folder that gets image.raw, kernel, initrd, os-release), SUITE, PACKAGES (comma separated), UUID,
# TMPFS_MIB (0: build on disk). Arguments: apt sources, one line each; none takes mmdebstrap's own default.
# Output: mmdebstrap's own, and lines that start with "fleetbox:" for the program that reads it.
set -eu

# The parent learns this process's pid (/proc is still the outer one) and answers once it holds it by pidfd. A parent
# that died meanwhile closes the pipe, and `read` fails: the one moment that the death signal does not cover.
read -r outer_pid _ </proc/self/stat
echo "fleetbox:pid $outer_pid"
read -r go
[ "$go" = go ]
exec </dev/null
mount -t proc proc /proc

export LC_ALL=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 022
mkdir "$PART/work"
# In memory dpkg's fsyncs cost nothing, and what is half built is gone with the namespace.
if [ "$TMPFS_MIB" -gt 0 ]; then
  mount -t tmpfs -o "mode=0755,size=${TMPFS_MIB}m" tmpfs "$PART/work"
fi
root=$PART/work/root hooks=$PART/work/hooks
mkdir "$root" "$hooks" "$PART/work/tmp"
export TMPDIR="$PART/work/tmp"

# Maintainer scripts call these for each package; the stand-ins note it, and `finish` does the work once.
# ssh-keygen: an image has no host keys. (Found through DPkg::Path below.)
cat >"$hooks/setup" <<'EOF'
#!/bin/sh
set -eu
mkdir -p "$1/fleetbox-build/bin" "$1/etc/dpkg/dpkg.cfg.d"
for tool in update-initramfs update-ca-certificates ssh-keygen; do
  printf '#!/bin/sh\nexit 0\n' >"$1/fleetbox-build/bin/$tool"
done
printf '#!/bin/sh\nprintf "%%s\\n" "$@" >>/fleetbox-build/py3compile\n' >"$1/fleetbox-build/bin/py3compile"
chmod 755 "$1/fleetbox-build/bin/"*
# Not as an option of mmdebstrap: it would pipe the essential packages through its slow tar filter (10 s).
cat >"$1/etc/dpkg/dpkg.cfg.d/fleetbox-build" <<'EOT'
force-unsafe-io
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
EOT
EOF
printf 'UUID=%s / ext4 errors=remount-ro 0 1\n' "$UUID" >"$hooks/fstab"
cat >"$hooks/finish" <<'EOF'
#!/bin/sh
set -eu
echo "fleetbox:stage finish"
# Before the initramfs, which gets the fsck of the root file system's type.
cp "$(dirname "$0")/fstab" "$1/etc/fstab"
cat >"$1/fleetbox-build/finish" <<'EOT'
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
# What any hypervisor's disk needs, not all that Debian knows: a third of the size, which is unpacked at every boot
# (slowly, under emulation), and 8 s less to build. Everything else is loaded from the root file system.
cat >/etc/initramfs-tools/conf.d/virtual-disks <<'EOC'
MODULES=list
COMPRESS=zstd
EOC
printf '%s\n' ext4 virtio_pci virtio_mmio virtio_blk virtio_scsi virtio_rng sd_mod sr_mod nvme ahci \
  >>/etc/initramfs-tools/modules
update-ca-certificates >/dev/null & certs=$!
# What py3compile would have done package by package; files in another Python's syntax are passed over as it does.
# Debian leaves netplan out, which cloud-init calls: each first boot would compile it, slowly under emulation.
python3 -m compileall -q -j 2 /usr/lib/python3/dist-packages /usr/share/netplan \
  $(grep ^/ /fleetbox-build/py3compile | sort -u) >/dev/null || true & python=$!
update-initramfs -c -k all
wait "$certs"
wait "$python"
EOT
chroot "$1" sh /fleetbox-build/finish
EOF
chmod 755 "$hooks/setup" "$hooks/finish"

echo "fleetbox:stage packages"
mmdebstrap --mode=root --format=directory --verbose --variant=minbase --include="$PACKAGES" \
  --hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr \
  --setup-hook="$hooks/setup" --customize-hook="$hooks/finish" \
  --aptopt='DPkg::Path "/fleetbox-build/bin:/usr/sbin:/usr/bin:/sbin:/bin"' \
  --aptopt='Acquire::Languages "none"' \
  --aptopt='Acquire::http::Timeout "30"' --aptopt='Acquire::https::Timeout "30"' \
  --aptopt='Acquire::Retries "3"' \
  ${APT_CONF:+--aptopt="$APT_CONF"} \
  "$SUITE" "$root" "$@" 2>&1

echo "fleetbox:stage clean"
cd "$root"
rm -rf fleetbox-build etc/dpkg/dpkg.cfg.d/fleetbox-build etc/dpkg/dpkg.cfg.d/99mmdebstrap \
  etc/apt/apt.conf.d/99mmdebstrap var/lib/apt/lists/* var/cache/apt/*.bin var/cache/debconf/*-old \
  var/lib/dpkg/*-old etc/ssh/ssh_host_* etc/hostname var/lib/dbus/machine-id run/* tmp/* \
  usr/share/man/* usr/share/info/*
# What the essential packages brought before the excludes were in force.
find usr/share/doc -type f ! -name copyright -delete
find usr/share/doc -mindepth 1 -type d -empty -delete
find usr/share/locale -mindepth 1 -maxdepth 1 ! -name locale.alias -exec rm -rf {} +
find var/log -type f -exec truncate -s 0 {} +
: >etc/machine-id
printf 'LANG=C.UTF-8\n' >etc/default/locale
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' >etc/hosts
# Before Debian 12 resolved is a part of systemd that nothing switches on.
ln -sfn ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf
chroot . systemctl --quiet enable systemd-resolved.service 2>/dev/null
# As Ubuntu has it. Debian 12's resolved asks by multicast, too, for each name without a dot that DNS does not know:
# such a look-up took 12 s, and a reverse one got whichever name came first.
mkdir -p etc/systemd/resolved.conf.d
printf '[Resolve]\nLLMNR=no\nMulticastDNS=no\n' >etc/systemd/resolved.conf.d/no-multicast.conf
# What systemd-update-done would say after the first boot: dpkg has just brought the linker's cache, users and catalogs
# up to date, so the first boot need not (systemd.unit(5), ConditionNeedsUpdate; seconds under emulation).
touch -r usr etc/.updated var/.updated
cp -L boot/vmlinuz-* "$PART/kernel"
cp -L boot/initrd.img-* "$PART/initrd"
cp -L etc/os-release "$PART/os-release"
cd /

echo "fleetbox:stage disk"
# Room for the first boot; cloud-init grows it to the disk's size.
used_kib=$(du -sk "$root" | cut -f1)
size_kib=$(((used_kib * 5 / 4 + 262144 + 1048575) / 1048576 * 1048576))
[ "$size_kib" -ge 2097152 ] || size_kib=2097152
truncate -s "${size_kib}K" "$PART/image.raw"
# Features by name: the host's own defaults may be ones that Debian 11's kernel (5.10) cannot mount.
mke2fs -q -F -t ext4 -b 4096 -I 256 -m 1 -L root -U "$UUID" \
  -O none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum \
  -d "$root" "$PART/image.raw"
echo "fleetbox:stage done"
