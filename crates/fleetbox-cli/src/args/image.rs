//! The command line of `fleetbox image`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Arguments of `image`.
#[derive(Debug, Args)]
pub(crate) struct Image {
    #[command(subcommand)]
    pub(crate) command: Option<ImageCommand>,
}

/// What to do with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// List the images in the store, the newest first.
    ///
    /// USED BY names the machines whose disks need the image. One that is damaged is told of on stderr, and does not hide
    /// the others; the exit code is 8 then.
    #[command(
        visible_alias = "list",
        after_help = "\
Examples:
  fleetbox image ls
  fleetbox image ls --available
  fleetbox image ls --json | jq -r '.[] | select(.used_by == []) | .digest'"
    )]
    Ls(ImageLs),

    /// See that an image is in the store: download, build or import it, unless it is there.
    ///
    /// A start does it, too, but takes what was downloaded from an address without a digest as it is; this asks whether
    /// there is a newer file. An interrupted download is resumed. Prints the image's digest.
    #[command(after_help = "\
Examples:
  fleetbox image pull debian-12
  fleetbox image pull 'https://images.example/disk.qcow2#sha256=…'
  fleetbox image pull bootstrap:bookworm
  fleetbox image pull 'bootstrap:bookworm?packages=jq,tmux'")]
    Pull(ImagePull),

    /// Show all that is known of an image: its system, its size, how it boots, and what is odd about it.
    #[command(
        visible_alias = "show",
        after_help = "\
Examples:
  fleetbox image inspect bootstrap:bookworm
  fleetbox image inspect 3f2a --json"
    )]
    Inspect(ImageInspect),

    /// Take a disk image from a file, as a copy.
    ///
    /// Machines are made from it by the path it has now. Prints the image's digest.
    #[command(
        after_help = "Example:\n  fleetbox image import ./disk.qcow2 && fleetbox up web --image ./disk.qcow2"
    )]
    Import(ImageImport),

    /// Build a Debian image on this host, from the mirror that its apt uses.
    ///
    /// Needs root, and takes a minute or two. Machines are made from it as `bootstrap:<suite>`. Prints the image's digest.
    #[command(after_help = "\
Examples:
  fleetbox image build bookworm
  fleetbox image build trixie --packages nginx,jq")]
    Build(ImageBuild),

    /// Remove images.
    ///
    /// One that a machine's disk needs is refused with the machine's name, also when that machine is stopped.
    #[command(visible_aliases = ["remove", "delete"], after_help = "\
Examples:
  fleetbox image rm bootstrap:bookworm
  fleetbox image rm 3f2a 9c01")]
    Rm(ImageRm),

    /// Remove every image that no machine's disk needs.
    #[command(after_help = "Examples:\n  fleetbox image prune --dry-run\n  fleetbox image prune")]
    Prune(ImagePrune),
}

/// Arguments of `image ls`.
#[derive(Debug, Default, Args)]
pub(crate) struct ImageLs {
    /// Print an array of JSON objects with digest, references, os, arch, format, virtual_bytes, disk_bytes, created_at,
    /// used_by, kernel and notes.
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) json: bool,

    /// Print digests only, one a line.
    #[arg(long, short)]
    pub(crate) quiet: bool,

    /// List the names that can be downloaded instead. With --json: an array of objects with name, other_names, arch,
    /// snapshot, url, checksum and in_store.
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) available: bool,
}

/// Arguments of `image pull`.
#[derive(Debug, Args)]
pub(crate) struct ImagePull {
    /// What `fleetbox up --image` takes.
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
}

/// Arguments of `image inspect`.
#[derive(Debug, Args)]
pub(crate) struct ImageInspect {
    /// A reference, or the first digits of a digest: at least four.
    #[arg(value_name = "REF|DIGEST")]
    pub(crate) name: String,

    /// Print a JSON object. Fields may be added in later versions.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `image import`.
#[derive(Debug, Args)]
pub(crate) struct ImageImport {
    /// The file.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Follow the backing files that a qcow2 file names, anywhere on this host, and take copies of them, too.
    #[arg(long)]
    pub(crate) allow_backing: bool,
}

/// Arguments of `image build`.
#[derive(Debug, Args)]
pub(crate) struct ImageBuild {
    /// The Debian suite, such as bookworm.
    #[arg(value_name = "SUITE")]
    pub(crate) suite: String,

    /// What is installed beside what every such image has.
    #[arg(long, short, value_name = "LIST", value_delimiter = ',')]
    pub(crate) packages: Vec<String>,
}

/// Arguments of `image rm`.
#[derive(Debug, Args)]
pub(crate) struct ImageRm {
    /// References, or the first digits of digests: at least four.
    #[arg(required = true, value_name = "REF|DIGEST")]
    pub(crate) names: Vec<String>,

    /// It is no error when there is none of that name. What a disk needs is refused all the same.
    #[arg(long, short)]
    pub(crate) force: bool,
}

/// Arguments of `image prune`.
#[derive(Debug, Args)]
pub(crate) struct ImagePrune {
    /// Tell what would be removed, and remove nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}
