/// The reasons why bytes cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A newer binary wrote the bytes. They are not damaged, but this binary cannot read them.
    #[error("format {0} is newer than this version of recoup can read")]
    Newer(u16),
    #[error("malformed data: {0}")]
    Malformed(String),
    /// The bytes are not the ones that were written.
    #[error("the checksum does not match")]
    Damaged,
}
