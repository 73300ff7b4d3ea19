// Which optimization profile of a TensorRT engine serves given shapes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "result.hpp"
#include "tensor.hpp"

namespace toolkit {

struct ShapeRange {
  Shape least, most;
};

/// The smallest and largest shape of every input in one profile.
using Profile = std::map<std::string, ShapeRange>;

/// The index of the profile that holds every shape; of several, the one that fixes most sizes. TensorRT has its
/// single-query attention kernel only where the number of tokens is fixed at 1.
Result<int> choose_profile(const std::vector<Profile>& profiles, const std::map<std::string, Shape>& shapes);

}  // namespace toolkit
