use thiserror::Error;

/// Why a layout is not one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A cache without blocks.
    #[error("a cache of 0 blocks, allowed 1 or more")]
    NoBlocks,
    /// A place too many or too few.
    #[error("{found} places for pages of {expected} fragments")]
    Places {
        /// Places given.
        found: usize,
        /// Layers times parts.
        expected: usize,
    },
    /// Not one tensor for each layer or fragment.
    #[error("{found} tensors, {expected} are needed")]
    Tensor {
        /// Tensors given.
        found: usize,
        /// What the layout needs.
        expected: usize,
    },
    /// Parts of different sizes in a tensor that has one size for all.
    #[error("parts of {one} and {other} bytes cannot share a tensor with one shape for both")]
    UnequalParts {
        /// Bytes of the first part.
        one: u32,
        /// Bytes of one that differs.
        other: u32,
    },
    /// Rows that do not divide their fragment.
    #[error("fragment {fragment} of {bytes} bytes cannot be cut into {rows} rows")]
    Rows {
        /// Index of the fragment in its page.
        fragment: usize,
        /// Rows asked for.
        rows: u32,
        /// Bytes of the fragment.
        bytes: u32,
    },
    /// A tensor that was not given.
    #[error("fragment {fragment} lies in tensor {found}, and there are {count}")]
    NoTensor {
        /// Index of the fragment in its page.
        fragment: usize,
        /// The tensor named.
        found: usize,
        /// How many there are.
        count: usize,
    },
    /// A fragment that reaches beyond its tensor.
    #[error("fragment {fragment} reaches beyond the {bytes} bytes of tensor {tensor}")]
    Outside {
        /// Index of the fragment in its page.
        fragment: usize,
        /// The tensor it lies in.
        tensor: usize,
        /// Bytes of that tensor.
        bytes: u64,
    },
    /// A tensor that ends beyond the last address.
    #[error("tensor {tensor} ends beyond the last address")]
    TensorEnd {
        /// Its index.
        tensor: usize,
    },
    /// Two tensors that share bytes.
    #[error("tensors {one} and {other} overlap")]
    Tensors {
        /// Index of the one that begins first.
        one: usize,
        /// Index of the other.
        other: usize,
    },
    /// Two fragments, or one and itself in another block or row, that share bytes.
    #[error("fragments {one} and {other} overlap")]
    Fragments {
        /// Index of one in its page.
        one: usize,
        /// Index of the other, or the same one.
        other: usize,
    },
    /// Fragments of one tensor that are laid out differently, so that nobody can tell whether
    /// they overlap.
    #[error("fragments {one} and {other} share tensor {tensor} with different strides or rows")]
    Strides {
        /// Index of one in its page.
        one: usize,
        /// Index of the other.
        other: usize,
        /// Their tensor.
        tensor: usize,
    },
}
