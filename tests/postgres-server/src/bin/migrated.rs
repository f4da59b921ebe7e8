//! Runs a command beside a private Postgres server, after applying the migrations of a folder to its database.
//! It does not use the store's code for that, because compiling that code requires a database that has the
//! schema already.
//!
//! ```text
//! migrated FOLDER COMMAND [ARGUMENT]…
//! ```
//!
//! The command finds the database through `DATABASE_URL`.

use std::path::Path;
use std::process::{Command, ExitCode};

use recoup_test_postgres::{Database, Server};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, command, rest @ ..] = &arguments[..] else {
        eprintln!("usage: migrated FOLDER COMMAND [ARGUMENT]…");
        return ExitCode::from(2);
    };
    let server = Server::start(&[]);
    let database = server.database().await;
    migrate(&database, Path::new(folder)).await;
    let url = format!("{}?options=-csearch_path%3Drecoup", database.url());
    let status = Command::new(command).args(rest).env("DATABASE_URL", url).status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{command}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Applies the migrations in the order of their file names.
async fn migrate(database: &Database, folder: &Path) {
    let client = database.client().await;
    const SCHEMA: &str = "create schema recoup; set search_path = recoup";
    client.batch_execute(SCHEMA).await.expect("the database is empty");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder can be read")
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("the file can be read");
        let applied = client.batch_execute(&text).await;
        applied.unwrap_or_else(|error| panic!("{}: {error:?}", file.display()));
    }
}
