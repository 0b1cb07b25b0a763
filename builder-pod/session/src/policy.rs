use lapstrake_api::policysession::{CheckPolicyRequest, CheckPolicyResponse, check_policy};

use crate::error::Error;
use crate::session::{Session, method};

impl Session {
    /// Asks the client whether a build may have a source.
    ///
    /// # Errors
    /// The client decides no policies, is gone, or failed.
    pub async fn check_policy(&self, request: CheckPolicyRequest) -> Result<CheckPolicyResponse, Error> {
        self.require(method::CHECK_POLICY)?;
        self.call("check policy", check_policy(self.channel(), request)).await
    }
}
