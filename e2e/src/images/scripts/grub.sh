# GPT: GRUB for BIOS in a boot partition of its own, GRUB for UEFI in an EFI system partition, an ext4 root. The kernel
# is where nobody but GRUB looks: in an archive that its configuration opens with `loopback`, as rescue systems do.
open_tree "$TREE" "$tree"
truncate -s 64M "$work/esp.fs"
truncate -s 2432M "$work/root.fs"
in_tree mke2fs -q -F -t ext4 -L root /mnt/root.fs
root_uuid=$(uuid_of "$work/root.fs")
mount -o loop "$work/root.fs" "$root"
copy_tree "$root"
printf 'UUID=%s / ext4 errors=remount-ro 0 1\n' "$root_uuid" >"$root/etc/fstab"
kernel=$(ls "$root/lib/modules")
tar -C "$root/boot" --transform='s/-.*//' -cf "$work/system.tar" "vmlinuz-$kernel" "initrd.img-$kernel"
rm -f "$root/boot/vmlinuz-"* "$root/boot/initrd.img-"* "$root/vmlinuz"* "$root/initrd.img"*
mv "$work/system.tar" "$root/boot/system.tar"
mkdir -p "$root/boot/grub"
cp -r "$tree/usr/lib/grub/i386-pc" "$tree/usr/lib/grub/x86_64-efi" "$root/boot/grub/"
cat >"$root/boot/grub/grub.cfg" <<EOT
serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console
set timeout=1
menuentry 'Debian, from an archive' {
  loopback system /boot/system.tar
  linux (system)/vmlinuz root=UUID=$root_uuid ro console=tty0 console=ttyS0,115200 fleetbox_test=loader
  initrd (system)/initrd.img
}
EOT
fact kernel "$kernel"
fact root_uuid "$root_uuid"
umount "$root"

# What grub-install would make, which needs the disk as a block device for it.
cat >"$work/early.cfg" <<EOT
search.fs_uuid $root_uuid root
set prefix=(\$root)/boot/grub
EOT
in_tree grub-mkimage -O i386-pc -o /mnt/core.img -c /mnt/early.cfg -p /boot/grub \
  biosdisk part_gpt ext2 search_fs_uuid normal
in_tree grub-mkimage -O x86_64-efi -o /mnt/bootx64.efi -c /mnt/early.cfg -p /boot/grub \
  part_gpt fat ext2 search_fs_uuid normal
in_tree mkfs.vfat -n EFI /mnt/esp.fs
in_tree mmd -i /mnt/esp.fs ::/EFI ::/EFI/BOOT
in_tree mcopy -i /mnt/esp.fs /mnt/bootx64.efi ::/EFI/BOOT/BOOTX64.EFI

truncate -s 2499M "$PART/disk.raw"
in_tree sfdisk -q /srv/disk.raw <<'EOT'
label: gpt
start=1MiB, size=1MiB, type=21686148-6449-6E6F-744E-656564454649
start=2MiB, size=64MiB, type=uefi
start=66MiB, size=2432MiB, type=linux
EOT
put "$work/esp.fs" 2
put "$work/root.fs" 66
# What grub-bios-setup does: code into the first sector up to the disk's signature, the rest of GRUB into its partition,
# and each told where the next piece is, by number of the sector (kernel_sector at 0x5c of boot.img; the block list at
# the end of core.img's first sector). Two nops at 0x66: trust the disk's number that the BIOS gives.
[ "$(wc -c <"$work/core.img")" -le 1048576 ]
poke() { printf "$2" | dd of="$PART/disk.raw" bs=1 seek="$1" conv=notrunc status=none; }
dd if="$tree/usr/lib/grub/i386-pc/boot.img" of="$PART/disk.raw" bs=440 count=1 conv=notrunc status=none
dd if="$work/core.img" of="$PART/disk.raw" bs=512 seek=2048 conv=notrunc status=none
poke $((0x5c)) '\000\010\000\000\000\000\000\000'
poke $((0x66)) '\220\220'
poke $((2048 * 512 + 500)) '\001\010\000\000\000\000\000\000'
