use recoup_proto::v1::{self, admin_service_client::AdminServiceClient};

use super::{Client, rpc};
use crate::Error;

impl Client {
    /// Reads which formats the store may hold, and what the servers read that are running.
    ///
    /// # Errors
    /// Those of every call.
    pub async fn formats(&self) -> Result<v1::GetFormatsResponse, Error> {
        let request = v1::GetFormatsRequest {};
        rpc!(self, AdminServiceClient.get_formats(request)).await
    }

    /// Allows the newest formats that every running server reads, and so the features that need them. For an
    /// operator who has updated all servers and will not roll them back.
    ///
    /// # Errors
    /// Those of every call.
    pub async fn finalize_formats(&self) -> Result<v1::FinalizeFormatsResponse, Error> {
        let request = v1::FinalizeFormatsRequest {};
        rpc!(self, AdminServiceClient.finalize_formats(request)).await
    }
}
