//! Files whose contents can't be searched: compressed, or encrypted by another program.

/// Returns the format of a file with these first bytes, if it can't be searched.
pub(super) fn opaque(first: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 15] = [
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh", "bzip2"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"LZIP", "lzip"),
        (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
        (b"PK\x03\x04", "zip"),
        (b"Rar!\x1a\x07", "RAR"),
        (b"\xff\x06\0\0sNaPpY", "snappy"),
        // Table data is compressed by default.
        (b"PGDMP", "pg_dump archive"),
        (b"PAR1", "Parquet"),
        (b"Obj\x01", "Avro"),
        (b"age-encryption.org/", "age"),
        (b"LUKS\xba\xbe", "LUKS"),
    ];
    KINDS
        .iter()
        .find(|(magic, _)| first.starts_with(magic))
        .map(|(_, kind)| *kind)
}
