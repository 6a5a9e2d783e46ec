# GPT: one partition with btrfs, compressed; the root is its subvolume @, which is not the default one, and /home is
# another. So nothing but `rootflags=` of the loader's own configuration finds the root.
open_tree "$TREE" "$tree"
truncate -s 2560M "$work/root.fs"
in_tree mkfs.btrfs -q -L root /mnt/root.fs
root_uuid=$(uuid_of "$work/root.fs")
mkdir "$work/top"
mount -o loop,compress=zstd:1 "$work/root.fs" "$work/top"
mount --bind "$work/top" "$tree/media"
in_tree btrfs subvolume create /media/@
in_tree btrfs subvolume create /media/@home
device=$(device_of "$work/top")
mount -o subvol=@,compress=zstd:1 "$device" "$root"
mkdir "$root/home"
mount -o subvol=@home,compress=zstd:1 "$device" "$root/home"
copy_tree "$root"
cat >"$root/etc/fstab" <<EOT
UUID=$root_uuid / btrfs subvol=@,compress=zstd:1 0 0
UUID=$root_uuid /home btrfs subvol=@home,compress=zstd:1 0 0
EOT
echo btrfs >>"$root/etc/initramfs-tools/modules"
kernel_files "$root"
device_in "$root" "$device"
chroot "$root" update-initramfs -u -k all
configure_grub "$root"
grep -q "linux.*/@/boot/vmlinuz-.* root=UUID=$root_uuid .*rootflags=subvol=@" "$root/boot/grub/grub.cfg"
fact kernel "$(ls "$root/lib/modules")"
fact root_uuid "$root_uuid"
umount "$root/dev" "$root/proc" "$root/home" "$root" "$tree/media" "$work/top"

truncate -s 2562M "$PART/disk.raw"
in_tree sfdisk -q /srv/disk.raw <<'EOT'
label: gpt
start=1MiB, size=2560MiB, type=linux
EOT
put "$work/root.fs" 1
