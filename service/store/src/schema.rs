//! Which database schemas a binary can run on. All stores that have tables follow this one rule.

use crate::contract::{Error, Result};

/// A change of the tables. Its version is its place in the list of migrations, counted from 1.
#[derive(Clone, Copy)]
pub struct Migration {
    pub name: &'static str,
    pub text: &'static str,
    /// The oldest schema version whose binaries can still be started after this migration. A migration that only
    /// adds things which an older binary need not know keeps the value of the migration before it. A migration
    /// that takes something away raises it to the first version that works without.
    pub oldest: u32,
}

/// Makes a migration from a file in the store's migrations folder; the path is relative to the module of the
/// store. No binaries exist for the schemas before the first release, so each of these migrations requires a
/// binary that knows it. A later migration states the oldest version that still works.
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

/// A migration that has been applied to a database, by this binary or by another one.
#[derive(Clone, Debug)]
pub struct Applied {
    pub version: u32,
    pub name: String,
    pub checksum: String,
    pub oldest: u32,
}

/// Checks whether a binary that knows the migrations with these checksums can run on a database to which
/// `applied` has been applied, in the order of versions.
///
/// Migrations of a newer binary are accepted as long as none of them excludes this binary.
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
                    "migration {version} ({name}) is from a newer version of recoup; it needs one that \
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
            told(&later).contains("migration 4 (m4) is from a newer version"),
            "{}",
            told(&later)
        );
        let edited = [one.clone(), applied(2, "x", 2)];
        assert!(told(&edited).contains("migration 2 (m2) is not the one"), "{}", told(&edited));
        let missing = [one, applied(3, "c", 1)];
        assert!(told(&missing).contains("migration 2 is missing"), "{}", told(&missing));
    }
}
