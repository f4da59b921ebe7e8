//! The name of one life of one database. Cursors and leases carry it.

use uuid::Uuid;

use super::connection::Connection;
use super::error::Failure;
use crate::contract::Error;

pub(super) fn lost_row() -> Error {
    Error::Incompatible("the row that identifies the store is missing".into())
}

/// The incarnation of this database. In a database that was restored from a dump, the row still describes the
/// old database. The first node that reads it then writes a new name.
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

/// The name of this database, unless the row describes another one.
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
