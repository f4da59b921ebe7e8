use recoup_proto::v1::{self, admin_service_client::AdminServiceClient};

use super::{Client, rpc};
use crate::Error;

impl Client {
    /// Reads the formats that the store may hold, and the formats that each running server can read.
    ///
    /// # Errors
    /// The errors of every call.
    pub async fn formats(&self) -> Result<v1::GetFormatsResponse, Error> {
        let request = v1::GetFormatsRequest {};
        rpc!(self, AdminServiceClient.get_formats(request)).await
    }

    /// Allows the newest formats that every running server can read, and with them the features that need
    /// those formats. Call it after all servers have been updated and will not be rolled back.
    ///
    /// # Errors
    /// The errors of every call.
    pub async fn finalize_formats(&self) -> Result<v1::FinalizeFormatsResponse, Error> {
        let request = v1::FinalizeFormatsRequest {};
        rpc!(self, AdminServiceClient.finalize_formats(request)).await
    }
}
