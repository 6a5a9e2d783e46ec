# The tree itself as a vendor publishes it: qcow2, in clusters compressed with zstd.
qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd "$TREE" "$PART/disk.qcow2"
fact sha256 "$(sha256sum "$PART/disk.qcow2" | cut -d' ' -f1)"
fact size "$(stat -c %s "$PART/disk.qcow2")"
