//! The name of one life of one database, which cursors and leases carry.

use uuid::Uuid;

use super::connection::Connection;
use super::error::Failure;
use crate::contract::Error;

pub(super) fn lost_row() -> Error {
    Error::Incompatible("the store has lost the row that names it".into())
}

/// Of this life of this database. A dump that was restored has the row of the old one, in another place:
/// the first to look gives it a new name.
pub(super) async fn incarnation(connection: &mut Connection) -> Result<Uuid, Failure> {
    if let Some(name) = name(connection).await? {
        return Ok(name);
    }
    let rename = sqlx::query!(
        "update store set incarnation = gen_random_uuid(), database_oid = here.oid::int8,
            table_oid = 'recoup.store'::regclass::oid::int8,
            system_identifier = control.system_identifier
        from pg_database as here, pg_control_system() as control
        where here.datname = current_database()
            and (store.database_oid, store.table_oid, store.system_identifier)
                is distinct from (here.oid::int8, 'recoup.store'::regclass::oid::int8,
                    control.system_identifier)"
    );
    connection.execute(rename).await?;
    Ok(name(connection).await?.ok_or_else(lost_row)?)
}

/// The name of this life of this database, if it has one.
async fn name(connection: &mut Connection) -> Result<Option<Uuid>, Failure> {
    let name = sqlx::query_scalar!(
        "select store.incarnation
        from store, pg_database as here
        where here.datname = current_database()
            and store.database_oid = here.oid::int8
            and store.table_oid = 'recoup.store'::regclass::oid::int8
            and store.system_identifier = (select system_identifier from pg_control_system())"
    );
    connection.first(name).await
}
