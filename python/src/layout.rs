use crate::error::value;
use crate::identity::Geometry;
use crate::memory::{Kind, Owner, View};
use pyo3::prelude::*;
use std::sync::Arc;
use undercroft_client::wire::MAX_PARTS;
use undercroft_gpu_shim::{KvLayout, Place, Tensor};

/// Where an engine's blocks lie, and what keeps that memory.
#[pyclass(frozen, module = "undercroft")]
pub(crate) struct Layout {
    pub(crate) layout: KvLayout,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) owners: Arc<Vec<Owner>>,
}

#[pymethods]
impl Layout {
    #[new]
    #[expect(clippy::needless_pass_by_value, reason = "what Python hands over")]
    fn new(
        geometry: Geometry,
        blocks: u32,
        tensors: Vec<Bound<'_, PyAny>>,
        places: Vec<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let name = |index| format!("tensors[{index}]");
        let views = tensors.iter().enumerate();
        let views =
            views.map(|(i, given)| View::of(&name(i), given)).collect::<PyResult<Vec<_>>>()?;
        let tensors = views
            .iter()
            .enumerate()
            .map(|(i, view)| Ok(Tensor { base: view.address, bytes: view.dense_bytes(&name(i))? }));
        let tensors = tensors.collect::<PyResult<Vec<_>>>()?;
        let places = places.iter().map(place).collect::<PyResult<Vec<_>>>()?;
        Self::with(geometry.0, blocks, tensors, places, views)
    }

    #[staticmethod]
    #[pyo3(signature = (tensors, *, block_dim, blocks))]
    #[expect(clippy::needless_pass_by_value, reason = "what Python hands over")]
    fn of_tensors(
        tensors: Vec<Bound<'_, PyAny>>,
        block_dim: BlockDim,
        blocks: u32,
    ) -> PyResult<Self> {
        let views = tensors.iter().enumerate();
        let views = views.map(|(i, given)| View::of(&format!("tensors[{i}]"), given));
        let views = views.collect::<PyResult<Vec<_>>>()?;
        let dims = block_dim.each(views.len())?;
        let (pieces, piece_of) = pieces(&views);
        let mut places = Vec::new();
        let mut part_bytes: Option<Vec<u32>> = None;
        for (index, view) in views.iter().enumerate() {
            let name = format!("tensors[{index}]");
            let fragments = fragments(&name, view, dims[index], blocks)?;
            let bytes: Vec<u32> = fragments.iter().map(|f| f.bytes).collect();
            match &part_bytes {
                Some(first) if *first != bytes => {
                    return Err(value(format!(
                        "{name} has parts of {bytes:?} bytes in a block and tensors[0] of {first:?}: \
                         layers of one layout are alike"
                    )));
                }
                _ => part_bytes = Some(bytes),
            }
            let tensor = piece_of[index];
            let before = view.address - pieces[tensor].base;
            places.extend(fragments.iter().map(|fragment| Place {
                tensor,
                offset: before.saturating_add(fragment.offset),
                block_stride: fragment.block_stride,
                rows: fragment.rows,
                row_stride: fragment.row_stride,
            }));
        }
        let parts = part_bytes.ok_or_else(|| value("no tensors, allowed one for each layer"))?;
        let layers = u32::try_from(views.len()).map_err(value)?;
        let geometry = Geometry::of(layers, &parts)?;
        Self::with(geometry.0, blocks, pieces, places, views)
    }

    #[getter]
    fn geometry(&self) -> Geometry {
        Geometry(self.layout.geometry())
    }

    #[getter]
    fn blocks(&self) -> u32 {
        self.layout.blocks()
    }

    /// Where the fragments lie, one in the order of a page: (tensor, offset, block stride, rows,
    /// row stride), bytes.
    #[getter]
    fn places(&self) -> Vec<(usize, u64, u64, u32, u64)> {
        let row = |p: &Place| (p.tensor, p.offset, p.block_stride, p.rows, p.row_stride);
        self.layout.places().iter().map(row).collect()
    }

    fn __repr__(&self) -> String {
        format!("Layout({:?}, {} blocks)", self.layout.geometry(), self.layout.blocks())
    }
}

impl Layout {
    fn with(
        geometry: undercroft_client::wire::Geometry,
        blocks: u32,
        tensors: Vec<Tensor>,
        places: Vec<Place>,
        views: Vec<View>,
    ) -> PyResult<Self> {
        let layout = KvLayout::new(geometry, blocks, tensors, places).map_err(value)?;
        let (kinds, owners) = views.into_iter().map(|view| (view.kind, view.owner)).unzip();
        Ok(Self { layout, kinds, owners: Arc::new(owners) })
    }
}

/// `(tensor, offset, block stride)` or `(tensor, offset, block stride, rows, row stride)`.
fn place(given: &Bound<'_, PyAny>) -> PyResult<Place> {
    if let Ok((tensor, offset, block_stride)) = given.extract() {
        return Ok(Place { tensor, offset, block_stride, rows: 1, row_stride: 0 });
    }
    let (tensor, offset, block_stride, rows, row_stride) = given.extract().map_err(|_| {
        value("a place is (tensor, offset, block stride) or (…, rows, row stride), whole numbers")
    })?;
    Ok(Place { tensor, offset, block_stride, rows, row_stride })
}

/// Which dimension counts blocks: of all tensors, or one for each.
#[derive(FromPyObject)]
enum BlockDim {
    All(usize),
    Each(Vec<usize>),
}

impl BlockDim {
    fn each(self, count: usize) -> PyResult<Vec<usize>> {
        match self {
            Self::All(dim) => Ok(vec![dim; count]),
            Self::Each(dims) if dims.len() == count => Ok(dims),
            Self::Each(dims) => {
                let found = dims.len();
                Err(value(format!("block_dim has {found} entries for {count} tensors")))
            }
        }
    }
}

/// The allocations that tensors lie in, as far as can be told: tensors that overlap, as views of
/// one storage do, are one. And which of them each tensor lies in.
fn pieces(views: &[View]) -> (Vec<Tensor>, Vec<usize>) {
    let mut order: Vec<usize> = (0..views.len()).collect();
    order.sort_by_key(|index| views[*index].address);
    let mut pieces: Vec<Tensor> = Vec::new();
    let mut piece_of = vec![0; views.len()];
    for index in order {
        let (base, bytes) = (views[index].address, views[index].extent());
        match pieces.last_mut() {
            Some(last) if base < last.base.saturating_add(last.bytes) => {
                last.bytes = last.bytes.max((base - last.base).saturating_add(bytes));
            }
            _ => pieces.push(Tensor { base, bytes }),
        }
        piece_of[index] = pieces.len() - 1;
    }
    (pieces, piece_of)
}

/// A part of one layer.
struct Fragment {
    offset: u64,
    block_stride: u64,
    bytes: u32,
    rows: u32,
    row_stride: u64,
}

/// What lies of one block in a tensor: what is outside of the blocks' dimension makes parts, what
/// is inside of it is one piece, or rows of equal length.
fn fragments(name: &str, view: &View, block_dim: usize, blocks: u32) -> PyResult<Vec<Fragment>> {
    let blocks = u64::from(blocks.max(1));
    let Some((count, stride)) = view.shape.get(block_dim).zip(view.strides.get(block_dim)) else {
        let found = view.shape.len();
        return Err(value(format!("block_dim is {block_dim}, {name} has {found} dimensions")));
    };
    let (count, stride) = (*count, *stride);
    if count == 0 || !count.is_multiple_of(blocks) {
        return Err(value(format!(
            "dimension {block_dim} of {name} has {count} entries, allowed a multiple of {blocks} blocks"
        )));
    }
    // A block of the engine's may be several ones of its kernels, one after another.
    let kernel_blocks = count / blocks;
    let (block_stride, whole) =
        (stride.saturating_mul(kernel_blocks), stride.saturating_mul(count));
    let others = view.shape.iter().zip(&view.strides).enumerate();
    let others = others.filter(|(dim, (n, _))| *dim != block_dim && **n != 1);
    let others = others.map(|(_, (n, stride))| (*n, *stride));
    let (outer, mut inner): (Vec<_>, Vec<_>) =
        others.partition(|(_, s)| *s >= whole && *s > stride);
    let parts = outer.iter().fold(1, |parts: u64, (n, _)| parts.saturating_mul(*n));
    if parts > MAX_PARTS as u64 {
        return Err(value(format!(
            "{name} has {parts} parts in a block, allowed 1 to {MAX_PARTS}"
        )));
    }
    if kernel_blocks > 1 {
        inner.push((kernel_blocks, stride));
    }
    let (bytes, rows, row_stride) = rows(name, view.item_bytes, inner)?;
    let offsets = outer.iter().fold(vec![0], |offsets: Vec<u64>, (n, stride)| {
        let further = |at: u64| (0..*n).map(move |i| at.saturating_add(i.saturating_mul(*stride)));
        offsets.into_iter().flat_map(further).collect()
    });
    let bytes =
        u32::try_from(bytes).map_err(|_| value(format!("{name} has blocks of {bytes} bytes")))?;
    let fragment = |offset| Fragment { offset, block_stride, bytes, rows, row_stride };
    Ok(offsets.into_iter().map(fragment).collect())
}

/// How many bytes there are, in how many rows, and from one row to the next.
fn rows(name: &str, item_bytes: u64, mut inner: Vec<(u64, u64)>) -> PyResult<(u64, u32, u64)> {
    inner.sort_by_key(|(_, stride)| *stride);
    let mut dense = item_bytes;
    let mut row: Option<(u64, u64)> = None;
    for (n, stride) in inner {
        match &mut row {
            None if stride == dense => dense = dense.saturating_mul(n),
            None => row = Some((n, stride)),
            Some((rows, row_stride)) if stride == rows.saturating_mul(*row_stride) => {
                *rows = rows.saturating_mul(n);
            }
            Some(_) => {
                return Err(value(format!(
                    "{name}: a block lies in pieces of {dense} bytes at more than one distance; allowed \
                     one piece, or pieces at one distance"
                )));
            }
        }
    }
    let (rows, row_stride) = row.unwrap_or((1, 0));
    let count =
        u32::try_from(rows).map_err(|_| value(format!("{name} has {rows} rows in a block")))?;
    if rows > 1 && row_stride < dense {
        return Err(value(format!(
            "{name}: pieces of {dense} bytes overlap, {row_stride} bytes apart"
        )));
    }
    Ok((dense.saturating_mul(rows), count, row_stride))
}
