//! Which schemas a binary runs on. One rule for all stores that have tables.

use crate::contract::{Error, Result};

/// A change of the tables. Its place among the others gives its version, from 1 on.
#[derive(Clone, Copy)]
pub struct Migration {
    pub name: &'static str,
    pub text: &'static str,
    /// The oldest schema version whose binaries still run once this has been applied. A migration that only
    /// adds what an older binary need not know leaves it at what it was; one that takes something away
    /// raises it to the first version that does without.
    pub oldest: u32,
}

/// A file of a store's folder, from the folder of the store's module. Binaries of the schemas before the first
/// release do not exist, so each of these needs one that knows it; a later one says which is the oldest that
/// does.
macro_rules! migration {
    ($store:literal $version:literal $name:literal $file:literal) => {
        Migration {
            name: $name,
            text: include_str!(concat!("../../migrations/", $store, "/", $file)),
            oldest: $version,
        }
    };
}
pub(crate) use migration;

/// A migration that a database has had, by this binary or by another.
#[derive(Clone, Debug)]
pub struct Applied {
    pub version: u32,
    pub name: String,
    pub checksum: String,
    pub oldest: u32,
}

/// Whether a binary that knows these migrations, with these checksums, runs on a database that has had
/// `applied`, in the order of versions.
///
/// Migrations of a newer binary are accepted as long as none of them excludes this one.
///
/// # Errors
/// [`Error::Incompatible`] if a migration is missing, differs from the known one, or excludes this binary.
pub fn check(checksums: &[String], applied: &[Applied]) -> Result<()> {
    let newest = checksums.len();
    for (one, at) in applied.iter().zip(0_usize..) {
        let Applied { version, name, checksum, oldest } = one;
        let expected = at + 1;
        if usize::try_from(*version) != Ok(expected) {
            return Err(Error::Incompatible(format!("migration {expected} is missing")));
        }
        match checksums.get(at) {
            Some(known) if known != checksum => {
                let reason =
                    format!("migration {version} ({name}) is not the one that was applied");
                return Err(Error::Incompatible(reason));
            }
            None if usize::try_from(*oldest).is_ok_and(|oldest| oldest > newest) => {
                return Err(Error::Incompatible(format!(
                    "migration {version} ({name}) is of a newer version of recoup; it needs one that \
                     knows migration {oldest}, and this one knows {newest}"
                )));
            }
            Some(_) | None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(version: u32, checksum: &str, oldest: u32) -> Applied {
        let name = format!("m{version}");
        Applied { version, name, checksum: checksum.to_owned(), oldest }
    }

    #[test]
    fn a_newer_schema_is_accepted_unless_it_excludes_this_binary() {
        let known = ["a", "b"].map(str::to_owned);
        let told = |rows: &[Applied]| match check(&known, rows) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        let (one, two) = (applied(1, "a", 1), applied(2, "b", 2));
        assert_eq!(told(&[]), "");
        assert_eq!(told(std::slice::from_ref(&one)), "", "an older schema is brought up to date");
        assert_eq!(told(&[one.clone(), two.clone()]), "");
        assert_eq!(told(&[one.clone(), two.clone(), applied(3, "c", 2)]), "", "two still runs");
        let later = [one.clone(), two.clone(), applied(3, "c", 2), applied(4, "d", 3)];
        assert!(
            told(&later).contains("migration 4 (m4) is of a newer version"),
            "{}",
            told(&later)
        );
        let edited = [one.clone(), applied(2, "x", 2)];
        assert!(told(&edited).contains("migration 2 (m2) is not the one"), "{}", told(&edited));
        let missing = [one, applied(3, "c", 1)];
        assert!(told(&missing).contains("migration 2 is missing"), "{}", told(&missing));
    }
}
