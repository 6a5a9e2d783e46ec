//! The OpenAPI document. The functions here are never called: utoipa reads their attributes.

use fleetbox_spec::{Capabilities, MachineInfo, MachineSpec};
use utoipa::OpenApi;

use crate::{ApiError, CloseRequest, HolderInfo, StopRequest, StreamItem, VersionInfo};

macro_rules! route {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[expect(dead_code, reason = "only its attributes are read")]
        fn $name() {}
    };
}

route! {
    /// Who answers, and in which version of the API.
    #[utoipa::path(get, path = "/version", responses((status = 200, body = VersionInfo)))]
    version
}
route! {
    /// The state of the holder.
    #[utoipa::path(get, path = "/v1/holder", responses((status = 200, body = HolderInfo), (status = "default", body = ApiError)))]
    holder
}
route! {
    /// What the backend can do. Chooses the backend, if none was needed yet.
    #[utoipa::path(get, path = "/v1/capabilities", responses((status = 200, body = Capabilities), (status = "default", body = ApiError)))]
    capabilities
}
route! {
    /// Makes the network and keeps it while it is empty, until the cluster is closed.
    #[utoipa::path(post, path = "/v1/network",
        responses((status = 200, body = StreamItem, content_type = "application/x-ndjson"), (status = "default", body = ApiError)))]
    network
}
route! {
    /// All machines of the cluster.
    #[utoipa::path(get, path = "/v1/machines", responses((status = 200, body = Vec<MachineInfo>), (status = "default", body = ApiError)))]
    machines
}
route! {
    /// Starts a machine, or answers with the one that runs. Hanging up cancels the start.
    #[utoipa::path(post, path = "/v1/machines", request_body = MachineSpec,
        responses((status = 200, body = StreamItem, content_type = "application/x-ndjson"), (status = "default", body = ApiError)))]
    start
}
route! {
    /// One machine.
    #[utoipa::path(get, path = "/v1/machines/{name}", params(("name" = String, Path)),
        responses((status = 200, body = MachineInfo), (status = "default", body = ApiError)))]
    machine
}
route! {
    /// Stops a machine at once and deletes it, disk and all.
    #[utoipa::path(delete, path = "/v1/machines/{name}", params(("name" = String, Path)),
        responses((status = 200, body = StreamItem, content_type = "application/x-ndjson"), (status = "default", body = ApiError)))]
    destroy
}
route! {
    /// Stops a machine; its disk is kept.
    #[utoipa::path(post, path = "/v1/machines/{name}/stop", params(("name" = String, Path)), request_body = StopRequest,
        responses((status = 200, body = StreamItem, content_type = "application/x-ndjson"), (status = "default", body = ApiError)))]
    stop
}
route! {
    /// Halts a machine's virtual CPUs.
    #[utoipa::path(post, path = "/v1/machines/{name}/pause", params(("name" = String, Path)),
        responses((status = 200, body = MachineInfo), (status = "default", body = ApiError)))]
    pause
}
route! {
    /// Lets a machine's virtual CPUs run again.
    #[utoipa::path(post, path = "/v1/machines/{name}/resume", params(("name" = String, Path)),
        responses((status = 200, body = MachineInfo), (status = "default", body = ApiError)))]
    resume
}
route! {
    /// Cuts a machine's power and boots it again.
    #[utoipa::path(post, path = "/v1/machines/{name}/reset", params(("name" = String, Path)),
        responses((status = 200, body = StreamItem, content_type = "application/x-ndjson"), (status = "default", body = ApiError)))]
    reset
}
route! {
    /// Lets the holder live until it is closed.
    #[utoipa::path(post, path = "/v1/detach", responses((status = 200, body = HolderInfo), (status = "default", body = ApiError)))]
    detach
}
route! {
    /// Releases the network and ends the holder.
    #[utoipa::path(post, path = "/v1/close", request_body = CloseRequest,
        responses((status = 200, body = StreamItem, content_type = "application/x-ndjson"), (status = "default", body = ApiError)))]
    close
}
route! {
    /// Every event from now on.
    #[utoipa::path(get, path = "/v1/events", responses((status = 200, body = StreamItem, content_type = "application/x-ndjson")))]
    events
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "fleetbox holder",
        description = "HTTP over a unix socket; streams are newline-delimited JSON.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
        version = "1"
    ),
    paths(
        version,
        holder,
        capabilities,
        network,
        machines,
        start,
        machine,
        destroy,
        stop,
        pause,
        resume,
        reset,
        detach,
        close,
        events
    )
)]
struct Document;

/// The OpenAPI 3.1 document as pretty JSON with a final newline.
///
/// # Errors
/// Never in practice: the document holds nothing that JSON cannot.
pub fn openapi_json() -> Result<String, serde_json::Error> {
    let mut text = serde_json::to_string_pretty(&Document::openapi())?;
    text.push('\n');
    Ok(text)
}
