//! The folder of the store. It shows which process has the store open, and whether the database in it is the
//! one that was there before.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::contract::{Error, Result};

const DATABASE: &str = "recoup.db";
/// Locked while the store is open. It holds the number of the latest opening and the file number of the
/// database. A restored database differs in at least one of them.
const LOCK: &str = "recoup.lock";

pub(super) struct Folder {
    path: PathBuf,
    lock: File,
}

impl Folder {
    pub fn open(path: &Path) -> Result<Self> {
        Self::locked(path).map_err(|error| match error {
            TryLockError::WouldBlock => Error::InUse,
            TryLockError::Error(error) => {
                Error::Unavailable(format!("{}: {error}", path.display()))
            }
        })
    }

    fn locked(path: &Path) -> Result<Self, TryLockError> {
        let made = || -> io::Result<File> {
            if !path.is_dir() {
                DirBuilder::new().recursive(true).mode(0o700).create(path)?;
                if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty())
                {
                    File::open(parent)?.sync_all()?;
                }
            }
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let lock = options.open(path.join(LOCK))?;
            Ok(lock)
        };
        let lock = made().map_err(TryLockError::Error)?;
        lock.try_lock()?;
        let this = Self { path: path.to_owned(), lock };
        this.make_database().map_err(TryLockError::Error)?;
        Ok(this)
    }

    /// Creates an empty file, which is an empty database. It is created here so that only its owner can read it
    /// and its log.
    fn make_database(&self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        options.open(self.database())?;
        File::open(&self.path)?.sync_all()
    }

    pub fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// The number of the latest opening that was recorded, if it was of this very file.
    pub fn session(&self) -> Option<i64> {
        let mut text = String::new();
        let mut lock = &self.lock;
        lock.rewind().ok()?;
        lock.read_to_string(&mut text).ok()?;
        let (session, file) = text.trim().split_once(' ')?;
        let file: u64 = file.parse().ok()?;
        if file != self.file_number().ok()? {
            return None;
        }
        session.parse().ok()
    }

    pub fn note_session(&self, session: i64) -> Result<()> {
        let note = || -> io::Result<()> {
            let text = format!("{session} {}\n", self.file_number()?);
            let mut lock = &self.lock;
            lock.rewind()?;
            lock.write_all(text.as_bytes())?;
            lock.set_len(text.len() as u64)?;
            lock.sync_all()
        };
        note().map_err(|error| Error::Unavailable(format!("{LOCK}: {error}")))
    }

    fn file_number(&self) -> io::Result<u64> {
        Ok(fs::metadata(self.database())?.ino())
    }
}
