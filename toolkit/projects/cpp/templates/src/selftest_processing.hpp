// The self-test's last step: the graphs before and after the model, on samples of what they replace.
#pragma once

#include <ostream>
#include <string>

#include "bundle.hpp"
#include "result.hpp"

namespace toolkit {

/// Run the samples in `<place>_data_set_N` through the entry's graph; says nothing where there is none.
[[nodiscard]] Failure check_processing(const Bundle& bundle, const std::string& place, const ProcessingEntry& entry,
                                       std::ostream& out);

}  // namespace toolkit
