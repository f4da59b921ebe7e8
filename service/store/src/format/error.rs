/// Why bytes could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A newer binary wrote it: it is not damaged, but this binary cannot read it.
    #[error("format {0} is newer than this version of recoup can read")]
    Newer(u16),
    #[error("malformed data: {0}")]
    Malformed(String),
    /// The bytes are not those that were written.
    #[error("the checksum does not match")]
    Damaged,
}
