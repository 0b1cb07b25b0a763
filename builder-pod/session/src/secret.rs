use lapstrake_api::MESSAGE_BYTES_MAX;
use lapstrake_api::secrets::GetSecretRequest;
use lapstrake_api::secrets::secrets_client::SecretsClient;
use tonic::Code;

use crate::error::Error;
use crate::session::{Session, method};

/// Size of the largest secret.
pub const SECRET_BYTES_MAX: usize = 500 << 10;

impl Session {
    /// The secret `id`; `None` when the client has none of this name, or no secrets at all.
    ///
    /// # Errors
    /// The client is gone or failed; more than [`SECRET_BYTES_MAX`] bytes.
    pub async fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, Error> {
        if !self.serves(method::SECRET) {
            return Ok(None);
        }
        let mut client = SecretsClient::new(self.channel())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let request = GetSecretRequest { id: id.to_owned(), annotations: Default::default() };
        match self.call("get secret", client.get_secret(request)).await {
            Ok(found) if found.data.len() > SECRET_BYTES_MAX => {
                Err(Error::SecretTooLarge { id: id.to_owned(), bytes: found.data.len() })
            }
            Ok(found) => Ok(Some(found.data)),
            Err(Error::Call { status, .. })
                if matches!(status.code(), Code::NotFound | Code::Unimplemented) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
