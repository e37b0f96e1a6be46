//! From errors of the domain to what a client sees: code, message, cause, and what to do.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use hearth_api::v1::{ErrorBody, ErrorCode};
use hearth_guest_protocol::message::{Failure, FailureCode};
use hearth_machine::{InvalidFilter, SpecError};

use super::networks;
use crate::guest::RequestError;
use crate::images::ImageError;
use crate::machines::{CreateError, MachineError, StartError};
use crate::records::spec::InvalidSpec;
use crate::setup::{NotSetUp, SetupError};
use crate::snapshots::TemplateError;

/// An error on its way out.
#[derive(Debug)]
pub(super) struct ApiError(pub(super) Box<ErrorBody>);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status());
        (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Json(self.0)).into_response()
    }
}

/// Puts an error together; its causes become one line.
pub(super) fn body(code: ErrorCode, error: &dyn std::error::Error, remediation: Option<&str>) -> ApiError {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    ApiError(Box::new(ErrorBody {
        code,
        message: error.to_string(),
        cause: (!causes.is_empty()).then(|| causes.join(": ")),
        remediation: remediation.map(str::to_owned),
    }))
}

/// Puts into words why a node did not come up, for who started it. No verb can help then: `hearth doctor` asks a node, too.
pub fn start_error(error: &dyn std::error::Error) -> ErrorBody {
    let remediation =
        "mend the cause; `hearth node` in the foreground shows everything that it does until then";
    *body(ErrorCode::HostUnfit, error, Some(remediation)).0
}

/// Refuses a request that makes no sense.
pub(super) fn invalid(message: impl Into<String>) -> ApiError {
    ApiError(Box::new(ErrorBody {
        code: ErrorCode::InvalidRequest,
        message: message.into(),
        cause: None,
        remediation: None,
    }))
}

/// Refuses to remove an image that machines are made of.
pub(super) fn in_use(image: &str, machines: &[String]) -> ApiError {
    ApiError(Box::new(ErrorBody {
        code: ErrorCode::InUse,
        message: format!("image {image} is in use by {}", machines.join(", ")),
        cause: None,
        remediation: Some(
            "remove those machines first (`hearth rm`), or force it: they keep what they need".to_owned(),
        ),
    }))
}

impl From<InvalidFilter> for ApiError {
    fn from(error: InvalidFilter) -> Self {
        body(ErrorCode::InvalidRequest, &error, None)
    }
}

/// An error of this host that is nobody's fault in particular.
pub(super) fn internal(error: &dyn std::error::Error) -> ApiError {
    body(
        ErrorCode::Internal,
        error,
        Some("see the node's log; `hearth node status` names the directory"),
    )
}

pub(super) async fn no_such_path() -> ApiError {
    ApiError(Box::new(ErrorBody {
        code: ErrorCode::NotFound,
        message: "no such path in this API".to_owned(),
        cause: None,
        remediation: Some("GET /v1/openapi.json lists them; is the client newer than the node?".to_owned()),
    }))
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        invalid(rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        invalid(rejection.body_text())
    }
}

impl From<NotSetUp> for ApiError {
    fn from(error: NotSetUp) -> Self {
        body(ErrorCode::NotSetUp, &error, Some("run `hearth setup`"))
    }
}

impl From<SetupError> for ApiError {
    fn from(error: SetupError) -> Self {
        body(
            ErrorCode::HostUnfit,
            &error,
            Some("mend the cause and run `hearth setup` again"),
        )
    }
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        let (code, remediation) = match &error {
            ImageError::NotFound(_) => (
                ErrorCode::ImageNotFound,
                "pull or build it; `hearth image ls` lists what is there",
            ),
            ImageError::Reference(_) => (
                ErrorCode::InvalidRequest,
                "name[:tag][@digest], oci:DIR[:TAG], docker-archive:FILE or dir:DIR",
            ),
            ImageError::Target(_) => (
                ErrorCode::InvalidRequest,
                "give it one of the form NAME[:TAG], without a digest",
            ),
            ImageError::Relative(_) => (ErrorCode::InvalidRequest, "give an absolute path"),
            ImageError::Pull(pull) => return body(ErrorCode::ImageFailed, &error, Some(&pull.remedy())),
            ImageError::Configuration(wrong) => {
                let remedy = format!("mend {}", wrong.path().display());
                return body(ErrorCode::HostUnfit, &error, Some(&remedy));
            }
            ImageError::OthersCredentials { .. } => (
                ErrorCode::InvalidRequest,
                "send the credentials for the image's own registry, or none",
            ),
            ImageError::Store(_) => (ErrorCode::ImageFailed, "check the data directory and its disk"),
            ImageError::Build(_) => (ErrorCode::ImageFailed, "mend the cause and build again"),
        };
        body(code, &error, Some(remediation))
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        let (code, remediation) = match error {
            CreateError::Image(error) => return error.into(),
            CreateError::NameTaken { .. } => (
                ErrorCode::NameTaken,
                Some("choose another name, or remove that machine"),
            ),
            CreateError::AddressTaken { .. } => (
                ErrorCode::InUse,
                Some("give another address; a machine with one of its own cannot be forked"),
            ),
            CreateError::Driver(_) => (ErrorCode::HostUnfit, Some("`hearth doctor` says what is missing")),
            CreateError::Unsupported { .. } => (
                ErrorCode::InvalidRequest,
                Some("take --driver firecracker, on a host where `hearth doctor` says that KVM is native"),
            ),
            CreateError::Network(error) => return error.into(),
            CreateError::NoCommand(_) => (ErrorCode::InvalidRequest, Some("give a command behind the image")),
            CreateError::Spec(InvalidSpec::Spec(SpecError::MemoryDoesNotFit { .. })) => (
                ErrorCode::InvalidRequest,
                Some("ask for less (-m), or make it larger: `mount -o remount,size=75% /dev/shm`"),
            ),
            CreateError::Spec(_) | CreateError::Name(_) | CreateError::Secret(_) => {
                (ErrorCode::InvalidRequest, None)
            }
            CreateError::Record(_) | CreateError::Directory { .. } | CreateError::Random(_) => (
                ErrorCode::Internal,
                Some("check the data directory and its disk; `hearth node status` names it"),
            ),
        };
        body(code, &error, remediation)
    }
}

impl From<StartError> for ApiError {
    fn from(error: StartError) -> Self {
        let (code, remediation) = match error {
            StartError::NotSetUp(error) => return error.into(),
            StartError::Guest(error) => return error.into(),
            StartError::Workload(failure) => return failure.into(),
            StartError::Refused(_) | StartError::Stopped => (ErrorCode::WrongState, None),
            StartError::SecretsLost(_) => (
                ErrorCode::WrongState,
                Some("remove the machine and run it again with its secrets"),
            ),
            StartError::HostShrank(_) => (
                ErrorCode::HostUnfit,
                Some("give the host back what it had, or remove the machine and run it again with less"),
            ),
            StartError::Agent(_) => (ErrorCode::NotSetUp, Some("run `hearth setup`")),
            StartError::Driver(_) => (ErrorCode::HostUnfit, Some("`hearth doctor` says what is missing")),
            StartError::Disk(_)
            | StartError::Directory { .. }
            | StartError::Record(_)
            | StartError::DiskInPlace(_)
            | StartError::Write { .. } => (
                ErrorCode::Internal,
                Some("check the data directory and its disk; `hearth node status` names it"),
            ),
            StartError::Network(ref error) => (ErrorCode::HostUnfit, Some(networks::remedy(error))),
            StartError::Port(_) => (
                ErrorCode::HostUnfit,
                Some("choose another port of the host, or none: `-p GUEST` takes one that is free"),
            ),
            StartError::Adopt(_) | StartError::NoWorkload => (ErrorCode::BootFailed, None),
            StartError::Certificates(_) => (
                ErrorCode::BootFailed,
                Some("--ca-cert needs a Linux guest, and room on the machine's disk"),
            ),
            StartError::Boot(_)
            | StartError::Restore(_)
            | StartError::Pager(_)
            | StartError::WentOn
            | StartError::Resume(_)
            | StartError::DiedInBoot { .. } => (
                ErrorCode::BootFailed,
                Some(
                    "`hearth doctor` checks the host; a machine without --rm stays, and `hearth console` shows its boot",
                ),
            ),
            StartError::NoHello { .. } | StartError::Connect(_) => (
                ErrorCode::BootFailed,
                Some(
                    "is the host overloaded, or the kernel one's own? A machine without --rm stays, and `hearth console` \
                     shows its boot",
                ),
            ),
        };
        body(code, &error, remediation)
    }
}

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> Self {
        let (code, remediation) = match error {
            TemplateError::NotFound(_) => (ErrorCode::NotFound, Some("`hearth template ls` lists templates")),
            TemplateError::Id(_) => (
                ErrorCode::InvalidRequest,
                Some("`hearth template ls` lists templates"),
            ),
            TemplateError::Write { .. } => (
                ErrorCode::Internal,
                Some("check the data directory and its disk; `hearth node status` names it"),
            ),
        };
        body(code, &error, remediation)
    }
}

impl From<MachineError> for ApiError {
    fn from(error: MachineError) -> Self {
        let (code, remediation) = match error {
            MachineError::Start(error) => return error.into(),
            MachineError::Guest(error) => return error.into(),
            MachineError::NotFound(_) | MachineError::Gone => {
                (ErrorCode::MachineNotFound, Some("`hearth ps -a` lists machines"))
            }
            MachineError::NameTaken { .. } => (
                ErrorCode::NameTaken,
                Some("choose another name, or remove that machine"),
            ),
            MachineError::Change(_) => (ErrorCode::InvalidRequest, None),
            MachineError::NoNetwork => (
                ErrorCode::InvalidRequest,
                Some("a machine has a network from its beginning: `hearth run --network filtered`"),
            ),
            MachineError::Network(error) => return error.into(),
            MachineError::Ambiguous(_) => (ErrorCode::InvalidRequest, Some("give more digits of the id")),
            MachineError::Refused(_) => (
                ErrorCode::WrongState,
                Some("stop it first (`hearth stop`), or remove it with force (`hearth rm -f`)"),
            ),
            MachineError::NotRunning { .. } => (ErrorCode::WrongState, Some("start it with `hearth start`")),
            MachineError::Paused { .. } => {
                (ErrorCode::WrongState, Some("let it go on with `hearth unpause`"))
            }
            MachineError::PauseUnderWay { .. } | MachineError::Busy { .. } => {
                (ErrorCode::WrongState, Some("try again"))
            }
            MachineError::Control(_) => (
                ErrorCode::Internal,
                Some("is the host overloaded? `hearth rm -f` removes a machine that cannot be saved"),
            ),
            MachineError::Spec(_) | MachineError::NoCommand => (ErrorCode::InvalidRequest, None),
            MachineError::Remove { .. } | MachineError::Read { .. } => (
                ErrorCode::Internal,
                Some("check the data directory; `hearth node status` names it"),
            ),
        };
        body(code, &error, remediation)
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Refused(failure) => failure.into(),
            RequestError::TooLong(_) => body(
                ErrorCode::InvalidRequest,
                &error,
                Some("arguments and environment may take 4 MiB in all"),
            ),
            RequestError::OlderAgent => body(
                ErrorCode::WrongState,
                &error,
                Some("restart the machine (`hearth restart`): it gets this node's agent then"),
            ),
            RequestError::ChannelLost => body(
                ErrorCode::GuestFailed,
                &error,
                Some("`hearth inspect` says how the machine ended"),
            ),
            RequestError::Timeout(_) => body(
                ErrorCode::Timeout,
                &error,
                Some(
                    "is the host overloaded? `hearth console` shows the guest of a machine that is still there",
                ),
            ),
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let (code, remediation) = match failure.code {
            FailureCode::CommandNotFound => (
                ErrorCode::CommandNotFound,
                Some("check the command, and the PATH inside"),
            ),
            FailureCode::CommandNotExecutable => (
                ErrorCode::CommandNotExecutable,
                Some("is it a program, for this architecture, with the x bit?"),
            ),
            FailureCode::UnknownUser => (
                ErrorCode::UnknownUser,
                Some("give a number, or a name from the image's /etc/passwd"),
            ),
            FailureCode::BadWorkingDirectory => (
                ErrorCode::InvalidRequest,
                Some("give a directory that exists inside"),
            ),
            FailureCode::NoSuchFile => (ErrorCode::FileNotFound, None),
            FailureCode::BadRequest => (ErrorCode::InvalidRequest, None),
            FailureCode::WorkloadGone => (ErrorCode::WrongState, Some("start it with `hearth start`")),
            FailureCode::ConnectionRefused | FailureCode::Storage | FailureCode::System => (
                ErrorCode::GuestFailed,
                Some("`hearth console` shows the guest of a machine that is still there"),
            ),
        };
        Self(Box::new(ErrorBody {
            code,
            message: failure.message,
            cause: None,
            remediation: remediation.map(str::to_owned),
        }))
    }
}
