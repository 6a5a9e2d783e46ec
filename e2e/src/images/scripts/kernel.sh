# A kernel package of the next release, for machines of this one: files and maintainer scripts of the real package as
# it is installed in OTHER_TREE.
#   linux.deb   with the modules that a machine of ours needs, and with the initramfs, which takes minutes to make under
#               emulation: to be installed with INITRD=No
#   whole.deb   with all that the real one has, as it has it
open_tree "$TREE" "$tree"
mkdir "$work/other" "$work/upper" "$work/overlay"
open_tree "$OTHER_TREE" "$work/other"
other=$work/other
version=$(ls "$other/lib/modules")
package=linux-image-$version
mount -t overlay -o "lowerdir=$tree,upperdir=$work/upper,workdir=$work/overlay" overlay "$root"
kernel_files "$root"

whole=$work/whole
mkdir -p "$whole/DEBIAN"
# The package has no files that others have, and a folder needs no owner.
sed 's,^/,,' "$other/var/lib/dpkg/info/$package.list" | while read -r path; do
  if [ -f "$other/$path" ] || [ -L "$other/$path" ]; then echo "$path"; fi
done >"$work/list"
tar -C "$other" -cf - -T "$work/list" | tar -C "$whole" -xf -
for script in preinst postinst prerm postrm; do
  cp "$other/var/lib/dpkg/info/$package.$script" "$whole/DEBIAN/$script"
done
fields='Package: ${Package}\nVersion: ${Version}\nArchitecture: ${Architecture}\nMaintainer: ${Maintainer}
Depends: ${Depends}\nDescription: ${Description}\n'
chroot "$other" dpkg-query -W -f "$fields" "$package" >"$whole/DEBIAN/control"

cp -a "$whole" "$work/light"
light=$work/light
tar -C "$whole" --exclude=./DEBIAN -cf - . | tar -C "$root" --keep-directory-symlink -xf -
chroot "$root" depmod "$version"
echo xfs >>"$root/etc/initramfs-tools/modules"
chroot "$root" mkinitramfs -o "/boot/initrd.img-$version" "$version"
cp "$root/boot/initrd.img-$version" "$light/boot/"
rm -f "$light/boot/System.map-"*
# Drivers of hardware that no hypervisor has are most of it.
for unused in drivers/gpu drivers/infiniband drivers/media drivers/net/ethernet drivers/net/wireless sound; do
  find "$light" -type d -path "*/kernel/$unused" -prune -exec rm -r {} +
done
in_tree env TMPDIR=/mnt dpkg-deb --root-owner-group -Zgzip -z1 -b /mnt/light /srv/linux.deb
in_tree env TMPDIR=/mnt dpkg-deb --root-owner-group -Zgzip -z1 -b /mnt/whole /srv/whole.deb
fact kernel "$version"
fact package "$package"
