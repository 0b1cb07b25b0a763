//! What services there are, and their methods and messages, for clients that know none of them (`grpcurl`).

use tonic_reflection::pb;
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};
use tonic_reflection::server::v1alpha;
use tonic_reflection::server::{Builder, Error};

/// The services that the daemon serves, described.
const SERVICES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/services.bin"));

fn described() -> Builder<'static> {
    // Each of the two tells of the other too.
    Builder::configure()
        .register_encoded_file_descriptor_set(SERVICES)
        .register_encoded_file_descriptor_set(pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(pb::v1alpha::FILE_DESCRIPTOR_SET)
        .include_reflection_service(false)
}

/// `grpc.reflection.v1.ServerReflection`.
///
/// # Errors
/// None: what is described was checked when it was built.
pub fn current() -> Result<ServerReflectionServer<impl ServerReflection>, Error> {
    described().build_v1()
}

/// `grpc.reflection.v1alpha.ServerReflection`, which older clients ask.
///
/// # Errors
/// As [`current`].
pub fn alpha() -> Result<v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>, Error> {
    described().build_v1alpha()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_described_can_be_served() {
        assert!(current().is_ok() && alpha().is_ok());
    }
}
