// Fresh memory arrives page by page while it is written, which can take as long as what is computed into it; by 2 MiB
// pages that is several times quicker. A hint: where the system does not take it, nothing changes.
#pragma once

#include "tensor.h"

namespace mrisr {
namespace cpu {

// Of the pages that lie wholly in [data, data + bytes); nothing where these are few.
void ask_for_large_pages(void* data, Index bytes);

}  // namespace cpu
}  // namespace mrisr
