//! Taking images in, against the programs that one would use by hand, and making disks of them by their size.
//!
//! Both sides read the same files, which lie in the page cache, and write to the same file system. A ratio is speed
//! against speed: above 1, fleetbox is faster.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use fleetbox::ImageRef;
use fleetbox_image::{DiskMade, Image, ImageStage, Images, create_disk, digest_file};
use fleetbox_spec::DiskFormat;
use fleetbox_store::Store;
use serde::Serialize;
use tokio::process::Command;

use crate::args::Args;
use crate::markdown::spread;
use crate::stats::Summary;
use crate::{host, summary};

/// Speed against the program by hand.
const RATIO_TARGET: f64 = 1.0;
/// Virtual sizes that disks are made of, in GiB.
const SIZES_GIB: [u64; 3] = [1, 10, 100];
/// Disks of each size.
const CLONES: usize = 20;

/// The same work by both, in pairs.
#[derive(Debug, Clone, Serialize)]
struct Compared {
    what: String,
    /// The other program.
    with: String,
    /// Bytes that come in or out, whichever both must touch: what a rate is counted in.
    bytes: u64,
    fleetbox_s: Summary,
    other_s: Summary,
    /// Of each pair, the other's time by ours.
    ratio: Summary,
    /// Whether fleetbox runs that very program for it.
    same_program: bool,
}

/// Disks made from an image of one size.
#[derive(Debug, Clone, Serialize)]
struct Clones {
    virtual_gib: u64,
    overlay_ms: Summary,
    raw_ms: Summary,
    /// How raw ones were made: `reflink`, or how many bytes were copied.
    raw_made: String,
}

/// What was measured. It is the JSON, too: fields are only ever added.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    compared: Vec<Compared>,
    clones: Vec<Clones>,
    /// A 100 GiB overlay's time by a 1 GiB one's.
    clone_flatness: f64,
    inspect_ms: Summary,
    image: String,
    image_mib: u64,
    image_data_mib: u64,
    about: String,
}

pub(crate) async fn measure(args: &Args, work: &Path) -> Result<Report> {
    let reference: ImageRef = args.image.parse()?;
    eprintln!("bench: {reference}");
    let image = Images::new(Store::open_default()?).resolve(&reference, &|_| {}).await?;
    host::read_through(&image.path).context("could not read the image")?;
    let lab = Lab { work, image: &image, pairs: args.pairs };
    let mut compared = Vec::new();
    let mut inspect = Vec::new();
    lab.pack().await?;
    compared.push(lab.digest().await?);
    compared.push(lab.qcow2("zlib", &mut inspect).await?);
    compared.push(lab.qcow2("zstd", &mut inspect).await?);
    for (program, name) in [("gzip", "disk.gz"), ("xz", "disk.xz"), ("zstd", "disk.zst")] {
        compared.push(lab.unpack(program, name).await?);
    }
    let mut clones = Vec::new();
    for gib in SIZES_GIB {
        clones.push(lab.clones(gib).await?);
    }
    let overlay = |c: Option<&Clones>| c.map(|c| c.overlay_ms.median).context("no disks were made");
    let meta = fs::metadata(&image.path)?;
    Ok(Report {
        clone_flatness: overlay(clones.last())? / overlay(clones.first())?,
        compared,
        clones,
        inspect_ms: summary("inspections", &inspect)?,
        image: reference.to_string(),
        image_mib: meta.len() >> 20,
        image_data_mib: (meta.blocks() * 512) >> 20,
        about: host::about_image_tools().await?,
    })
}

struct Lab<'a> {
    work: &'a Path,
    image: &'a Image,
    pairs: usize,
}

/// When each stage of an import began, and when all was done.
struct Stages(Vec<(ImageStage, Instant)>, Instant);

impl Stages {
    /// Seconds from the beginning of a stage to that of the next.
    fn seconds(&self, stage: ImageStage) -> Result<f64> {
        let at = self.0.iter().position(|(s, _)| *s == stage);
        let at = at.with_context(|| format!("the import had no stage {stage:?}"))?;
        let end = self.0.iter().skip(at + 1).find(|(s, _)| *s != stage).map_or(self.1, |(_, i)| *i);
        let begin = self.0.get(at).map(|(_, i)| *i).context("no stage")?;
        Ok((end - begin).as_secs_f64())
    }
}

impl Lab<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }

    /// Makes the files that are taken in: the same disk in each format.
    async fn pack(&self) -> Result<()> {
        let from = self.image.path.display();
        for (what, line) in [
            (
                "disk.zlib",
                format!("qemu-img convert -c -f raw -O qcow2 -o compression_type=zlib '{from}' disk.zlib"),
            ),
            (
                "disk.zstd",
                format!("qemu-img convert -c -f raw -O qcow2 -o compression_type=zstd '{from}' disk.zstd"),
            ),
            ("disk.gz", format!("gzip -1 -c '{from}' >disk.gz")),
            ("disk.xz", format!("xz -1 -T0 -c '{from}' >disk.xz")),
            ("disk.zst", format!("zstd -q -3 -T0 -c '{from}' >disk.zst")),
        ] {
            eprintln!("bench: making {what}");
            self.shell(&line).await?;
        }
        Ok(())
    }

    /// Seconds that a shell line takes in the work folder.
    async fn shell(&self, line: &str) -> Result<f64> {
        let began = Instant::now();
        let done = Command::new("sh").args(["-ec", line]).current_dir(self.work).output().await?;
        let took = began.elapsed().as_secs_f64();
        if !done.status.success() {
            bail!("{line}: {}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim());
        }
        Ok(took)
    }

    /// Imports a file into a store of its own, which is removed afterwards.
    async fn import(&self, name: &str) -> Result<Stages> {
        let home = self.path("home");
        let images = Images::new(Store::open(&home)?);
        let seen = Mutex::new(Vec::<(ImageStage, Instant)>::new());
        let note = |p: fleetbox_image::ImageProgress| {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.last().is_none_or(|(stage, _)| *stage != p.stage) {
                seen.push((p.stage, Instant::now()));
            }
        };
        let image = images.resolve(&ImageRef::File(self.path(name)), &note).await?;
        let end = Instant::now();
        if image.virtual_size != self.image.virtual_size {
            bail!("{name} became an image of another size");
        }
        fs::remove_dir_all(&home)?;
        Ok(Stages(seen.into_inner().unwrap_or_else(PoisonError::into_inner), end))
    }

    async fn digest(&self) -> Result<Compared> {
        // Packed, as what is downloaded: there are no holes that one side could skip.
        let (path, mut pairs) = (self.path("disk.xz"), Vec::new());
        eprintln!("bench: digest");
        for index in 0..self.pairs.max(3) {
            let ours = async {
                let began = Instant::now();
                let digest = digest_file(&path).await?;
                anyhow::Ok((began.elapsed().as_secs_f64(), digest))
            };
            let theirs = self.shell("sha256sum disk.xz >digest");
            let ((a, digest), b) = match index.is_multiple_of(2) {
                true => (ours.await?, theirs.await?),
                false => {
                    let b = theirs.await?;
                    (ours.await?, b)
                }
            };
            if !fs::read_to_string(self.path("digest"))?.starts_with(&digest) {
                bail!("sha256sum and fleetbox disagree");
            }
            pairs.push((a, b));
        }
        compared("SHA-256 of a file", "sha256sum", fs::metadata(&path)?.len(), &pairs, false)
    }

    async fn qcow2(&self, kind: &str, inspect: &mut Vec<f64>) -> Result<Compared> {
        let name = format!("disk.{kind}");
        let line = format!("qemu-img convert -f qcow2 -O raw {name} by-hand.raw");
        let mut pairs = Vec::new();
        for index in 0..self.pairs {
            eprintln!("bench: qcow2 {kind}, pair {}", index + 1);
            let (stages, hand) = match index.is_multiple_of(2) {
                true => (self.import(&name).await?, self.shell(&line).await?),
                false => {
                    let hand = self.shell(&line).await?;
                    (self.import(&name).await?, hand)
                }
            };
            fs::remove_file(self.path("by-hand.raw"))?;
            pairs.push((stages.seconds(ImageStage::Convert)?, hand));
            inspect.push(stages.seconds(ImageStage::Inspect)? * 1e3);
        }
        let data = fs::metadata(&self.image.path)?.blocks() * 512;
        compared(&format!("qcow2 ({kind}) to raw"), "qemu-img convert", data, &pairs, true)
    }

    async fn unpack(&self, program: &str, name: &str) -> Result<Compared> {
        let line = format!("{program} -dc {name} >by-hand.raw");
        let mut pairs = Vec::new();
        for index in 0..self.pairs {
            eprintln!("bench: {program}, pair {}", index + 1);
            let (stages, hand) = match index.is_multiple_of(2) {
                true => (self.import(name).await?, self.shell(&line).await?),
                false => {
                    let hand = self.shell(&line).await?;
                    (self.import(name).await?, hand)
                }
            };
            fs::remove_file(self.path("by-hand.raw"))?;
            pairs.push((stages.seconds(ImageStage::Unpack)?, hand));
        }
        compared(
            &format!("{program} to raw"),
            &format!("{program} -dc"),
            self.image.virtual_size,
            &pairs,
            false,
        )
    }

    async fn clones(&self, gib: u64) -> Result<Clones> {
        eprintln!("bench: disks of {gib} GiB");
        // The same data in each, so that only the size differs.
        let path = self.path("large.raw");
        let file = File::create(&path)?;
        let data = vec![1u8; 1 << 20];
        for mib in 0..32 {
            file.write_all_at(&data, mib * ((gib << 30) / 32))?;
        }
        file.set_len(gib << 30)?;
        let image = Image { path, virtual_size: gib << 30, ..self.image.clone() };
        let (mut overlay, mut raw, mut made) = (Vec::new(), Vec::new(), String::new());
        for _ in 0..CLONES {
            for (format, times) in [(DiskFormat::Qcow2, &mut overlay), (DiskFormat::Raw, &mut raw)] {
                let disk = self.path("disk.clone");
                let began = Instant::now();
                let how = create_disk(&image, &disk, format, gib << 30).await?;
                times.push(began.elapsed().as_secs_f64() * 1e3);
                match how {
                    DiskMade::Reflink => made = "reflink".to_owned(),
                    DiskMade::Copied { bytes } => made = format!("{} MiB copied", bytes >> 20),
                    _ => {}
                }
                fs::remove_file(disk)?;
            }
        }
        fs::remove_file(&image.path)?;
        Ok(Clones {
            virtual_gib: gib,
            overlay_ms: summary("overlays", &overlay)?,
            raw_ms: summary("raw disks", &raw)?,
            raw_made: made,
        })
    }
}

fn compared(
    what: &str,
    with: &str,
    bytes: u64,
    pairs: &[(f64, f64)],
    same_program: bool,
) -> Result<Compared> {
    let (ours, theirs): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let ratios: Vec<f64> = pairs.iter().map(|(a, b)| b / a).collect();
    Ok(Compared {
        what: what.to_owned(),
        with: with.to_owned(),
        bytes,
        fleetbox_s: summary(what, &ours)?,
        other_s: summary(what, &theirs)?,
        ratio: summary(what, &ratios)?,
        same_program,
    })
}

impl Report {
    /// The block for docs/bench.md, which is readable on a terminal, too.
    pub(crate) fn block(&self) -> String {
        let mut text = format!(
            "{}. {} ({} MiB, {} of them data). Medians, with the lowest and the highest.\n\n\
             | what | fleetbox | compared with | speed ratio | target |\n|---|---|---|---|---|\n",
            self.about, self.image, self.image_mib, self.image_data_mib
        );
        for c in &self.compared {
            let rate = c.bytes as f64 / c.fleetbox_s.median / f64::from(1 << 20);
            let target = match c.same_program {
                true => "the same program: a tie".to_owned(),
                false => format!("≥ {RATIO_TARGET:.1}"),
            };
            text.push_str(&format!(
                "| {} | {}, {rate:.0} MiB/s | {} {} | {} | {target} |\n",
                c.what,
                spread(&c.fleetbox_s, " s"),
                c.with,
                spread(&c.other_s, " s"),
                spread(&c.ratio, ""),
            ));
        }
        text.push_str(&format!(
            "| looking into an image | {} | | | |\n\n| disk of | qcow2 overlay | raw | raw was made by |\n|---|---|---|---|\n",
            spread(&self.inspect_ms, " ms")
        ));
        for c in &self.clones {
            text.push_str(&format!(
                "| {} GiB | {} | {} | {} |\n",
                c.virtual_gib,
                spread(&c.overlay_ms, " ms"),
                spread(&c.raw_ms, " ms"),
                c.raw_made
            ));
        }
        text.push_str(&format!(
            "\nA 100 GiB overlay takes {:.2} times as long as one of 1 GiB.\n",
            self.clone_flatness
        ));
        text
    }
}
