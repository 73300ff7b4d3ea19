// The library of ONNX Runtime custom operators of domain `toolkit.cpu`.

#include "operators.h"
#include "processor.h"

namespace toolkit {
namespace {

struct Base {
  Api (*get_api)(uint32_t);
  const char* (*version)();
};

void* new_domain(Api api, bool linears) {
  void* created = nullptr;
  call(api, kCreateDomain, "toolkit.cpu", &created);
  for (const Op* op : attention_operators()) call(api, kDomainAdd, created, op);
  for (const Op* op : block_linear_operators()) call(api, kDomainAdd, created, op);
  if (!linears) return created;
  for (const Op* op : float_linear_operators()) call(api, kDomainAdd, created, op);
  for (const Op* op : int8_linear_operators()) call(api, kDomainAdd, created, op);
  return created;
}

// One domain for all sessions: it must outlive every one of them. With AVX2 alone ONNX Runtime's own products are the
// faster ones, so there the graph's functions are to run.
void* domain(Api api) {
  if (instructions() == kAvx2) {
    static void* const without = new_domain(api, false);
    return without;
  }
  static void* const whole = new_domain(api, true);
  return whole;
}

}  // namespace
}  // namespace toolkit

extern "C" {

__attribute__((visibility("default"))) void* RegisterCustomOps(void* options, const toolkit::Base* base) {
  using namespace toolkit;
  const Api api = base->get_api(kInterface);
  if (api == nullptr) return failure(base->get_api(1), "onnxruntime 1.17 or later is needed");
  return guarded(api, [&] { call(api, kAddDomain, options, domain(api)); });
}

// What the kernels use on this processor, by the numbers of `Instructions`.
__attribute__((visibility("default"))) int toolkit_kernels_instructions() { return toolkit::instructions(); }
}
