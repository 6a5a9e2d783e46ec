# GPT: an ext4 /boot, and an xfs root. The configuration of the loader is what update-grub writes; no loader is
# installed, as on a disk whose firmware has it elsewhere.
open_tree "$TREE" "$tree"
truncate -s 384M "$work/boot.fs"
truncate -s 2432M "$work/root.fs"
in_tree mke2fs -q -F -t ext4 -L boot /mnt/boot.fs
in_tree mkfs.xfs -q -L root /mnt/root.fs
boot_uuid=$(uuid_of "$work/boot.fs") root_uuid=$(uuid_of "$work/root.fs")

mount -o loop "$work/root.fs" "$root"
mkdir "$root/boot"
mount -o loop "$work/boot.fs" "$root/boot"
copy_tree "$root"
printf 'UUID=%s / xfs defaults 0 0\nUUID=%s /boot ext4 defaults 0 2\n' "$root_uuid" "$boot_uuid" >"$root/etc/fstab"
echo xfs >>"$root/etc/initramfs-tools/modules"
kernel_files "$root"
device_in "$root" "$(device_of "$root")"
device_in "$root" "$(device_of "$root/boot")"
chroot "$root" update-initramfs -u -k all
configure_grub "$root"
grep -q "linux.*/vmlinuz-.* root=UUID=$root_uuid" "$root/boot/grub/grub.cfg"
fact kernel "$(ls "$root/lib/modules")"
fact root_uuid "$root_uuid"
umount "$root/dev" "$root/proc" "$root/boot" "$root"

truncate -s 2818M "$PART/disk.raw"
in_tree sfdisk -q /srv/disk.raw <<'EOT'
label: gpt
start=1MiB, size=384MiB, type=linux
start=385MiB, size=2432MiB, type=linux
EOT
put "$work/boot.fs" 1
put "$work/root.fs" 385
