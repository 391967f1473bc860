#pragma once

#include <cstdint>

namespace mrisr::runtime {

// Eigenvalues of a symmetric matrix a [n, n], ascending, and its eigenvectors as the columns of a, in place.
// Householder tridiagonalisation, then QL with implicit shifts (Bowdler, Martin, Reinsch and Wilkinson, Numerische
// Mathematik 11, 1968). Raises Error (MRISR_ERROR_INTERNAL) where QL does not converge: NaN in a.
void symmetric_eigen(double* a, double* values, std::int64_t n);

}  // namespace mrisr::runtime
