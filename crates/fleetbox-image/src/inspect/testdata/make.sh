#!/bin/sh
# Makes the file systems in this folder anew: xfs.zst, xfs-dirty.zst, btrfs.zst, fat.zst. Needs root, loop devices, the kernel's xfs and
# btrfs, and the Debian packages xfsprogs, btrfs-progs, dosfstools, mtools and zstd. The tests need none of these: that is
# what the files are for. What is in them is said again in ../fs/fixtures.rs.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'umount "$work/mnt" 2>/dev/null || :; rm -rf "$work"' EXIT
mkdir "$work/mnt"

pattern() { python3 -c 'import sys; n = int(sys.argv[1]); sys.stdout.buffer.write(bytes(i // 512 * 7 % 251 for i in range(n)))' "$1"; }

# A system with what is taken for a kernel: the marks of a bzImage.
system() {
    mkdir -p "$1/etc" "$1/boot" "$1/usr/bin" "$1/usr/lib"
    printf 'ID=test\nVERSION_ID="1"\nPRETTY_NAME="Test Linux 1"\n' > "$1/usr/lib/os-release"
    ln -s ../usr/lib/os-release "$1/etc/os-release"
    python3 -c 'import sys; k = bytearray(1024); k[0x1fe:0x200] = b"\x55\xaa"; k[0x202:0x206] = b"HdrS"; sys.stdout.buffer.write(k)' \
        > "$1/boot/vmlinuz-6.1"
    printf initrd > "$1/boot/initrd.img-6.1"
}

fill() {
    system "$1"
    pattern 300000 > "$1/boot/data"
    printf 'short' > "$1/boot/short"
    # Too long for the inode.
    ln -s "/$(printf 'a%.0s' $(seq 600))/../boot/short" "$1/boot/long-link"
    # Runs of 4096 bytes with holes between them: many extents.
    python3 - "$1/boot/holes" <<'END'
import sys
with open(sys.argv[1], "wb") as f:
    for i in range(200):
        f.seek(i * 8192)
        f.write(bytes([i + 1]) * 4096)
    f.truncate(200 * 8192)
END
    # More than fit into one block of a folder, and more than into one block of its index.
    for i in $(seq 2000); do : > "$1/usr/bin/a-rather-long-name-of-a-program-$i"; done
}

# Variables that mkfs.xfs knows from its own tests: they allow less than 300 MB.
truncate -s 32M "$work/xfs"
TEST_DEV=1 TEST_DIR=1 QA_CHECK_FS=1 mkfs.xfs -q -i nrext64=1 -m bigtime=1,crc=1 -L xfslabel \
    -m uuid=11111111-2222-4333-8444-555555555555 "$work/xfs"
mount -o loop "$work/xfs" "$work/mnt"
fill "$work/mnt"
umount "$work/mnt"

truncate -s 16M "$work/xfs-dirty"
TEST_DEV=1 TEST_DIR=1 QA_CHECK_FS=1 mkfs.xfs -q -m uuid=11111111-2222-4333-8444-777777777777 "$work/xfs-dirty"
mount -o loop "$work/xfs-dirty" "$work/mnt"
system "$work/mnt"
umount "$work/mnt"
mount -o loop "$work/xfs-dirty" "$work/mnt"
echo more > "$work/mnt/boot/only-in-the-log"
xfs_io -x -c 'shutdown -f' "$work/mnt"
umount "$work/mnt"

truncate -s 128M "$work/btrfs"
mkfs.btrfs -q -L btrfslabel -U 11111111-2222-4333-8444-666666666666 "$work/btrfs"
mount -o loop,max_inline=0 "$work/btrfs" "$work/mnt"
btrfs -q subvolume create "$work/mnt/@"
btrfs -q subvolume create "$work/mnt/@home"
mkdir "$work/mnt/nested"
btrfs -q subvolume create "$work/mnt/nested/default"
btrfs -q subvolume set-default "$work/mnt/nested/default"
fill "$work/mnt/@"
printf 'default' > "$work/mnt/nested/default/which"
umount "$work/mnt"
for how in zlib lzo zstd; do
    mount -o loop,compress-force=$how,subvol=@ "$work/btrfs" "$work/mnt"
    pattern 300000 > "$work/mnt/boot/$how"
    printf 'inline %s inline %s' $how $how > "$work/mnt/boot/inline-$how"
    umount "$work/mnt"
done

truncate -s 40M "$work/fat"
mkfs.vfat -F 32 -s 1 -i ABCD1234 -n ESP "$work/fat" > /dev/null 2>&1
pattern 30000 > "$work/data"
printf 'title x\nlinux /x\n' > "$work/entry"
mmd -i "$work/fat" ::/EFI ::/EFI/Linux ::/loader ::/loader/entries
mcopy -i "$work/fat" "$work/data" "::/EFI/Linux/a-long-name-of-some-sort-6.1.efi"
mcopy -i "$work/fat" "$work/data" "::/EFI/Linux/SHORT.EFI"
mcopy -i "$work/fat" "$work/entry" "::/loader/entries/x.conf"

# Only the blocks that are not zero: place (8 bytes, little-endian), length (4), content; first the whole length (8).
for fs in xfs xfs-dirty btrfs fat; do
    python3 - "$work/$fs" <<'END' | zstd -q -19 --ultra -f -o "$here/$fs.zst"
import struct, sys
data = open(sys.argv[1], "rb").read()
out = sys.stdout.buffer
out.write(struct.pack("<Q", len(data)))
for at in range(0, len(data), 4096):
    block = data[at:at + 4096]
    if any(block):
        out.write(struct.pack("<QI", at, len(block)) + block)
END
done
ls -l "$here"
