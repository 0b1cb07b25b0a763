//! Messages in which definitions travel, in two forms: the published crate's, which everything else works on, and one that has the
//! fields which those lack. What is received is read in both, and the second one's definitions count.

use std::collections::HashMap;

use lapstrake_llb::newer::Definition;
use prost::bytes::Bytes;
use prost::{DecodeError, Message};

use crate::{control, frontend};

/// A message that can be received.
pub(crate) trait Incoming: Sized + Send + 'static {
    /// Reads it.
    fn read(bytes: Bytes) -> Result<Self, DecodeError>;
}

/// A message that can be sent.
pub(crate) trait Outgoing: Send + 'static {
    /// Its bytes.
    fn bytes(self) -> Vec<u8>;
}

fn inside<D>(all: HashMap<String, D>) -> HashMap<String, crate::pb::Definition>
where
    crate::pb::Definition: From<D>,
{
    all.into_iter().map(|(name, definition)| (name, definition.into())).collect()
}

/// A request to solve, and what its message lacks.
pub(crate) struct Solve {
    pub(crate) request: control::SolveRequest,
    pub(crate) proxy_network: bool,
}

/// What is read of a request to solve a second time.
#[derive(Clone, PartialEq, prost::Message)]
struct SolveBeside {
    #[prost(message, optional, tag = "2")]
    definition: Option<Definition>,
    #[prost(map = "string, message", tag = "10")]
    frontend_inputs: HashMap<String, Definition>,
    #[prost(bool, tag = "17")]
    proxy_network: bool,
}

impl Incoming for Solve {
    fn read(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut request = control::SolveRequest::decode(bytes.clone())?;
        let beside = SolveBeside::decode(bytes)?;
        request.definition = beside.definition.map(Into::into);
        request.frontend_inputs = inside(beside.frontend_inputs);
        Ok(Self { request, proxy_network: beside.proxy_network })
    }
}

impl Outgoing for control::SolveResponse {
    fn bytes(self) -> Vec<u8> {
        self.encode_to_vec()
    }
}

/// What is read of a frontend's request to solve a second time.
#[derive(Clone, PartialEq, prost::Message)]
struct NestedBeside {
    #[prost(message, optional, tag = "1")]
    definition: Option<Definition>,
    #[prost(map = "string, message", tag = "13")]
    frontend_inputs: HashMap<String, Definition>,
}

impl Incoming for frontend::SolveRequest {
    fn read(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut request = Self::decode(bytes.clone())?;
        let beside = NestedBeside::decode(bytes)?;
        request.definition = beside.definition.map(Into::into);
        request.frontend_inputs = inside(beside.frontend_inputs);
        Ok(request)
    }
}

/// A part of a result.
#[derive(Clone, PartialEq, prost::Message)]
struct Ref {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    def: Option<Definition>,
}

/// Parts of a result, by platform.
#[derive(Clone, PartialEq, prost::Message)]
struct Refs {
    #[prost(map = "string, message", tag = "1")]
    refs: HashMap<String, Ref>,
}

/// A frontend's result; what it is attested with keeps the form inside.
#[derive(Clone, PartialEq, prost::Message)]
struct Outcome {
    #[prost(string, optional, tag = "1")]
    old_one: Option<String>,
    #[prost(message, optional, tag = "2")]
    old_several: Option<frontend::RefMapDeprecated>,
    #[prost(message, optional, tag = "3")]
    one: Option<Ref>,
    #[prost(message, optional, tag = "4")]
    several: Option<Refs>,
    #[prost(map = "string, bytes", tag = "10")]
    metadata: HashMap<String, Vec<u8>>,
    #[prost(map = "string, message", tag = "12")]
    attestations: HashMap<String, frontend::Attestations>,
}

impl From<frontend::Result> for Outcome {
    fn from(of: frontend::Result) -> Self {
        use frontend::result::Result as Parts;
        let part = |part: frontend::Ref| Ref { id: part.id, def: part.def.map(Into::into) };
        let rest = Self { metadata: of.metadata, attestations: of.attestations, ..Self::default() };
        match of.result {
            None => rest,
            Some(Parts::RefDeprecated(id)) => Self { old_one: Some(id), ..rest },
            Some(Parts::RefsDeprecated(all)) => Self { old_several: Some(all), ..rest },
            Some(Parts::Ref(one)) => Self { one: Some(part(one)), ..rest },
            Some(Parts::Refs(all)) => {
                let refs = all.refs.into_iter().map(|(name, one)| (name, part(one))).collect();
                Self { several: Some(Refs { refs }), ..rest }
            }
        }
    }
}

impl From<Outcome> for frontend::Result {
    fn from(of: Outcome) -> Self {
        use frontend::result::Result as Parts;
        let part = |part: Ref| frontend::Ref { id: part.id, def: part.def.map(Into::into) };
        let several = |all: Refs| frontend::RefMap {
            refs: all.refs.into_iter().map(|(name, one)| (name, part(one))).collect(),
        };
        let old = || of.old_several.map(Parts::RefsDeprecated).or(of.old_one.map(Parts::RefDeprecated));
        let result = of.several.map(several).map(Parts::Refs).or(of.one.map(part).map(Parts::Ref));
        Self { metadata: of.metadata, attestations: of.attestations, result: result.or_else(old) }
    }
}

/// What a frontend returns.
#[derive(Clone, PartialEq, prost::Message)]
struct Return {
    #[prost(message, optional, tag = "1")]
    result: Option<Outcome>,
    #[prost(message, optional, tag = "2")]
    error: Option<crate::rpc::Status>,
}

impl Incoming for frontend::ReturnRequest {
    fn read(bytes: Bytes) -> Result<Self, DecodeError> {
        let Return { result, error } = Return::decode(bytes)?;
        Ok(Self { result: result.map(Into::into), error })
    }
}

impl Outgoing for frontend::ReturnResponse {
    fn bytes(self) -> Vec<u8> {
        self.encode_to_vec()
    }
}

/// What a frontend asked for.
#[derive(Clone, PartialEq, prost::Message)]
struct Solved {
    #[prost(string, tag = "1")]
    r#ref: String,
    #[prost(message, optional, tag = "3")]
    result: Option<Outcome>,
}

impl Outgoing for frontend::SolveResponse {
    fn bytes(self) -> Vec<u8> {
        Solved { r#ref: self.r#ref, result: self.result.map(Into::into) }.encode_to_vec()
    }
}

impl Incoming for frontend::InputsRequest {
    fn read(bytes: Bytes) -> Result<Self, DecodeError> {
        Self::decode(bytes)
    }
}

/// Definitions that a frontend was given.
#[derive(Clone, PartialEq, prost::Message)]
struct Inputs {
    #[prost(map = "string, message", tag = "1")]
    definitions: HashMap<String, Definition>,
}

impl Outgoing for frontend::InputsResponse {
    fn bytes(self) -> Vec<u8> {
        let definitions = self.definitions.into_iter().map(|(name, definition)| (name, definition.into()));
        Inputs { definitions: definitions.collect() }.encode_to_vec()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lapstrake_llb::description;
    use lapstrake_llb::newer::{LinuxResources, OpMetadata};

    use super::*;
    use crate::pb;

    const DIGEST: &str = "sha256:1";

    fn limited() -> Definition {
        let limits = LinuxResources { memory: 4096, ..LinuxResources::default() };
        let said = OpMetadata { linux_resources: Some(limits), ..OpMetadata::default() };
        Definition { metadata: BTreeMap::from([(DIGEST.to_owned(), said)]), ..Definition::default() }
    }

    fn limits(of: &pb::Definition) -> Option<&str> {
        of.metadata.get(DIGEST)?.description.get(description::RESOURCES).map(String::as_str)
    }

    fn named() -> HashMap<String, Definition> {
        HashMap::from([("a".to_owned(), limited())])
    }

    #[test]
    fn requests_bring_limits_beside_all_that_they_had() {
        let old = control::SolveRequest { session: "s".to_owned(), ..control::SolveRequest::default() };
        let new = SolveBeside { definition: Some(limited()), frontend_inputs: named(), proxy_network: true };
        let bytes = [old.encode_to_vec(), new.encode_to_vec()].concat();
        let read = Solve::read(bytes.into()).expect("a request");
        assert!(read.proxy_network);
        assert_eq!(read.request.session, "s");
        assert_eq!(read.request.definition.as_ref().and_then(limits), Some("memory=4096"));
        assert_eq!(limits(&read.request.frontend_inputs["a"]), Some("memory=4096"));

        let old = frontend::SolveRequest { evaluate: true, ..frontend::SolveRequest::default() };
        let new = NestedBeside { definition: Some(limited()), frontend_inputs: named() };
        let bytes = [old.encode_to_vec(), new.encode_to_vec()].concat();
        let read = frontend::SolveRequest::read(bytes.into()).expect("a request");
        assert!(read.evaluate);
        assert_eq!(read.definition.as_ref().and_then(limits), Some("memory=4096"));
        assert_eq!(limits(&read.frontend_inputs["a"]), Some("memory=4096"));
    }

    #[test]
    fn results_take_limits_to_a_frontend_and_back() {
        use frontend::result::Result as Parts;
        let part = frontend::Ref { id: "1".to_owned(), def: Some(limited().into()) };
        let refs = HashMap::from([("linux/amd64".to_owned(), part.clone())]);
        for parts in [
            Parts::Ref(part),
            Parts::Refs(frontend::RefMap { refs }),
            Parts::RefDeprecated("1".to_owned()),
            Parts::RefsDeprecated(frontend::RefMapDeprecated::default()),
        ] {
            let metadata = HashMap::from([("k".to_owned(), b"v".to_vec())]);
            let attestations = HashMap::from([("a".to_owned(), frontend::Attestations::default())]);
            let result = frontend::Result { metadata, attestations, result: Some(parts) };
            let response = frontend::SolveResponse { r#ref: "r".to_owned(), result: Some(result.clone()) };
            let bytes = Bytes::from(response.bytes());
            let sent = Solved::decode(bytes.clone()).expect("a result").result.expect("a result");
            let told = sent.one.clone().or_else(|| sent.several.clone()?.refs.into_values().next());
            assert!(told.is_none_or(|told| told.def == Some(limited())));
            let mut old = frontend::SolveResponse::decode(bytes).expect("a result");
            assert_eq!(old.r#ref, "r");
            let (old, mut whole) = (old.result.take().expect("a result"), result.clone());
            assert_eq!((&old.metadata, &old.attestations), (&whole.metadata, &whole.attestations));
            whole.result = old.result.clone();
            assert_eq!(old, whole);

            let status = crate::rpc::Status { code: 2, ..Default::default() };
            let error = Some(status);
            let returned = Return { result: Some(sent), error: error.clone() }.encode_to_vec();
            let back = frontend::ReturnRequest::read(returned.into()).expect("a result");
            assert_eq!(back, frontend::ReturnRequest { result: Some(result), error });
        }
    }

    #[test]
    fn inputs_are_handed_out_with_their_limits() {
        let response = frontend::InputsResponse { definitions: inside(named()) };
        let sent = Inputs::decode(Bytes::from(response.bytes())).expect("inputs");
        assert_eq!(sent.definitions, named());
    }
}
